FROM busybox
WORKDIR app
WORKDIR sub
FROM scratch
ENV d=x
WORKDIR ./$d/
