FROM busybox AS Bad
MAINTAINER me
RUN a \

b
NOPE
CMD x
