FROM busybox
RUN --mount=type=tmpfs,target=/new/deep/t true
RUN --mount=type=cache,target=/opt/c,id=parity-four true
