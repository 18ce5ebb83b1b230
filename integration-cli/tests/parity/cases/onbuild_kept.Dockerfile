FROM busybox
ONBUILD RUN echo later
ONBUILD COPY a.txt /
