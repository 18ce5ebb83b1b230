FROM busybox
RUN --mount=type=bind,source=dir,target=/m cp /m/one.txt /one
RUN --mount=source=a.txt,target=/m/file cat /m/file > /copy
