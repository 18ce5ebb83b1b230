FROM busybox
COPY --foo=1 a.txt /
# parity: error="foo"
