# check=error=true;experimental=all;skip=all
# wrong
ARG A
FROM busybox
CMD a
