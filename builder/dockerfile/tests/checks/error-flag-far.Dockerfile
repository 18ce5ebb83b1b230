FROM busybox
RUN --mounting=x true
