FROM scratch
COPY a.txt /
# parity: error="not found"
