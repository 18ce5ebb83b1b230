FROM busybox
USER app
WORKDIR /owned/deep
RUN stat -c "%u %g %a" . > /tmp/s
