FROM busybox
RUN true
RUN :
