FROM busybox
ENV A=1 B
# parity: error="can't find = in"
