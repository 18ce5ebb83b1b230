FROM busybox
COPY --chmod=640 a.txt /1
COPY --chmod=0711 dir /2
COPY --chmod=4755 a.txt /3
