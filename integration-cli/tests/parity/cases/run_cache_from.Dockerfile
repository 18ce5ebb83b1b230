FROM busybox AS a
RUN mkdir /seed && echo seed > /seed/f
FROM busybox
RUN --mount=type=cache,target=/c,id=parity-three,from=a,source=/seed cat /c/f > /f
