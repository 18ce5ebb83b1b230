FROM scratch
COPY dangling /x
# parity: error="not found"
