FROM busybox
EXPOSE 80-90 443/udp
