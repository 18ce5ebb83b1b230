FROM busybox
EXPOSE 80 no
