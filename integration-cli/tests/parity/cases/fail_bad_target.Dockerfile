FROM busybox
# parity: --target nope error="nope"
