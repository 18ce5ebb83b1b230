FROM busybox
RUN --mount=type=cache,target=/c,id=parity-one echo kept > /c/f
RUN --mount=type=cache,target=/c,id=parity-one cat /c/f > /seen
