FROM --platform=linux/amd64 busybox AS x
FROM --platform=linux/arm/v7 busybox
FROM --platform=amd64 busybox AS armed
