FROM busybox
WORKDIR /a/b
RUN pwd > f
WORKDIR c
RUN pwd > f
WORKDIR ../../d
RUN pwd > f
