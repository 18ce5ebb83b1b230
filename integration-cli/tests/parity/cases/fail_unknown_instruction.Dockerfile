FROM busybox
RUNN true
# parity: error="unknown instruction: RUNN"
