FROM busybox AS unused
CMD a
WORKDIR x
FROM busybox
ENV a b
