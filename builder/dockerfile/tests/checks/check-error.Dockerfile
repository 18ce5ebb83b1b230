# check=error=true
FROM busybox as x
CMD a
cmd b
