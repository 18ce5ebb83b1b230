FROM busybox
COPY a.txt /one/two/three/f
COPY dir /four/five
