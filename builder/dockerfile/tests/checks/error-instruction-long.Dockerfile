FROM busybox
RUN a \
  b
ADDD x \
  y \
  z
RUN q
