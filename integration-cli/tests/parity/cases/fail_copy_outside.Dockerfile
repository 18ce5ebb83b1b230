FROM busybox
COPY ../../etc/hostname /
# parity: error="not found"
