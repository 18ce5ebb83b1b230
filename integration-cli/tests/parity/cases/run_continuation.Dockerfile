FROM busybox
RUN echo one \
  two \
  # a comment within

  three > /f
