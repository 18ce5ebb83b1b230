FROM busybox
RUN --mount=type=cache,taget=/x true
