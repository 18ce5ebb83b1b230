FROM busybox
COPY ${B:?set B} /
