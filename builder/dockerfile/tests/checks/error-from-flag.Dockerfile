FROM --plattform=linux/amd64 busybox
