FROM busybox AS z
FROM parent
RUN x
