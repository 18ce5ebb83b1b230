FROM busybox AS a
CMD ["x"]
FROM a
ENTRYPOINT y z
