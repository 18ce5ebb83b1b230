# check=skip=all
ARG B=busybox
# one is the first
FROM --platform=$BUILDPLATFORM ${B}:1 AS One
RUN x
# none
FROM scratch AS two
FROM two
RUN <<E
E
# last the last one
FROM one AS last
