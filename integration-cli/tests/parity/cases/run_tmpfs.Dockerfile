FROM busybox
RUN --mount=type=tmpfs,target=/t echo x > /t/f && ls /t > /ls && grep " /t " /proc/mounts | cut -d" " -f3 > /kind
