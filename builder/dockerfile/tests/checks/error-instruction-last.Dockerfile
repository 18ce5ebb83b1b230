FROM busybox
RUN a
RUN b
RUN c
BAD
