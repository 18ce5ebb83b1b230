FROM busybox
RUN echo 1 > /one
FROM busybox
RUN false
# parity: --target 0
