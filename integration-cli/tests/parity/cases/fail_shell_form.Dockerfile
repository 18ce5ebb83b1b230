FROM busybox
SHELL /bin/sh
# parity: error="SHELL requires the arguments to be in JSON form"
