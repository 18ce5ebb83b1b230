FROM busybox a
RUN x
