FROM busybox AS a
WORKDIR /w
USER 1000:1000
ENV X=1
FROM a AS b
ENV Y=${X}2
RUN echo $Y > /tmp/y
FROM b
RUN echo "$X $Y $(pwd) $(id -u)" > /tmp/all
