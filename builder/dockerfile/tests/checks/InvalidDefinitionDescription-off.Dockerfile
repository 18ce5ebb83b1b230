# wrong
ARG A=1
# wrong
FROM busybox AS x
