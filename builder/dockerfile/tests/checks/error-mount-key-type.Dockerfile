FROM busybox
RUN --mount=type=cache,required=true,target=/x true
