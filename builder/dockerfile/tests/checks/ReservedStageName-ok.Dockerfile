FROM scratch
FROM busybox AS contexts
