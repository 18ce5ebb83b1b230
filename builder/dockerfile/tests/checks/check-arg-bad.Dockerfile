FROM busybox
CMD a
