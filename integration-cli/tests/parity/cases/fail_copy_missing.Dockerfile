FROM busybox
COPY missing.txt /
# parity: error="not found"
