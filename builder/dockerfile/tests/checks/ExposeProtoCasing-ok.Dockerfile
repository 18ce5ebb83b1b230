FROM busybox
EXPOSE 80 81/tcp 82/udp
