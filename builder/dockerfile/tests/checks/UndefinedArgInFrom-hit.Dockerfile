ARG BASE=busybox
ARG VERSION
FROM ${BSAE:-busybox} AS a
FROM busybox${OTHER}
FROM --platform=${BUILDPLATFROM:-linux/amd64} busybox$TAIL$VERSION
