FROM busybox
ARG X=1
ARG Y
RUN --mount=type=cache,target=/c --mount=type=secret,id=s true
