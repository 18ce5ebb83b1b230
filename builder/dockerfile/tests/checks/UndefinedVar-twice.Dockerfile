FROM busybox
COPY $x $x /
ENV a=$y$y b=$y
ENV PATH=$PAHT:/x
