FROM busybox AS a
RNU x
