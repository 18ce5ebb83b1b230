# syntax=docker/dockerfile:1
# check=skip=all
FROM busybox as x
CMD a
