FROM scratch
ADD nope.tar /
# parity: error="not found"
