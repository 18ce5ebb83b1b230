ARG =1
FROM busybox
