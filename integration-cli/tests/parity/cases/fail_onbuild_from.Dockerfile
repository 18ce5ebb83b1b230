FROM busybox
ONBUILD FROM x
# parity: error="ONBUILD"
