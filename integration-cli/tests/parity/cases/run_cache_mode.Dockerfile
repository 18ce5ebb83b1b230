FROM busybox
RUN --mount=type=cache,target=/c,id=parity-two,uid=1000,gid=2000,mode=0750 stat -c "%u %g %a" /c > /stat
