FROM busybox
COPY a.txt
# parity: error="requires at least two arguments"
