FROM busybox as a
FROM busybox As b
RUN true
