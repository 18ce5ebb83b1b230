ARG TARGET=x
FROM --platform=$TARGTE busybox
