# check=error=true
FROM busybox AS unused
CMD a
FROM busybox
