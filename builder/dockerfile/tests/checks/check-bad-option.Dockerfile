# check=skp=x
FROM busybox
