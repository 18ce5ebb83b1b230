FROM busybox
ONBUILD ONBUILD RUN x
# parity: error="ONBUILD"
