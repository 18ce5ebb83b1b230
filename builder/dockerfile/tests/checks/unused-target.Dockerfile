FROM busybox AS one
CMD a
FROM busybox AS two
ENV a b
