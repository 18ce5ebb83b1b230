FROM busybox
RUN --security=insecur true
