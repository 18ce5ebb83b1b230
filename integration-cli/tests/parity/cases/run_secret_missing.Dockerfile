FROM busybox
RUN --mount=type=secret,id=nope ls /run/secrets > /ls 2>&1 || echo none > /none
