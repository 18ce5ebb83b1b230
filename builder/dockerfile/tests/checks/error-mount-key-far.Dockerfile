FROM busybox
RUN --mount=type=cache,whatever=/x true
