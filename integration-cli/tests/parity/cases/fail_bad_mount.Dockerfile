FROM busybox
RUN --mount=type=nope,target=/x true
# parity: error="unsupported mount type"
