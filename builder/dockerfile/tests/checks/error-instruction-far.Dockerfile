FROM busybox
INSTALL curl
