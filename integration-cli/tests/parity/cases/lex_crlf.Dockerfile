FROM busybox
RUN echo a \
  b > /f
ENV X=1
