FROM --platform=linux/amd64 busybox AS on-amd64
FROM --platform=linux/arm64 busybox AS linux-thing
FROM --platform=$TARGETOS/arm64 busybox
