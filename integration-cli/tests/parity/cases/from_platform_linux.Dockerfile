FROM --platform=linux/amd64 busybox
COPY a.txt /
