FROM busybox
RUN --mount=type=$T,target=/x true
