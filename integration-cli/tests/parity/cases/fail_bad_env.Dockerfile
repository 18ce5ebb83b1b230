FROM busybox
ENV A
# parity: error="ENV must have two arguments"
