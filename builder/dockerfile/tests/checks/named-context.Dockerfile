FROM busybox AS a
CMD x
FROM a
ENV b c
