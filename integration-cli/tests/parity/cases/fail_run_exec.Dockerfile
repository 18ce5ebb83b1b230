FROM busybox
RUN ["/nonexistent"]
