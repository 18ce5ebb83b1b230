FROM busybox
RUN mkdir -m 711 /d && echo x > /d/x
COPY a.txt /d
COPY dir /d
