FROM busybox
COPY <<a <<b $x/
$y
a
text
b
WORKDIR \
  rel
