FROM busybox
RUN --mount=type=secret,id=nope,required true
# parity: error="not found"
