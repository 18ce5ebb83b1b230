FROM --platform=$BUILDPLATFORM busybox
FROM --platform=$TARGETOS/$TARGETARCH busybox
FROM --platform=${TARGETPLATFORM%/*}/arm64 busybox
