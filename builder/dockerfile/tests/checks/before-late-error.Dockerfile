FROM busybox AS Bad
CMD a
STOPSIGNAL nope
ENV a b
