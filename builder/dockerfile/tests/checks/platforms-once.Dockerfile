FROM busybox AS Bad
CMD a
