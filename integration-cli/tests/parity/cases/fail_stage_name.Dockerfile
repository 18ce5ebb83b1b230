FROM busybox AS 1abc
# parity: error="invalid name for build stage"
