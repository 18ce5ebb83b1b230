FROM busybox
ENV D=/var/x
WORKDIR $D/y
WORKDIR z
WORKDIR /abs/../norm//twice/
