FROM busybox AS broken
RUN false
FROM busybox
RUN echo ok > /ok
