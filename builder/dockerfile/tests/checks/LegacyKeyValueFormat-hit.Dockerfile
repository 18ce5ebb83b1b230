FROM busybox
ENV a b c
LABEL a b
env x \
  y
