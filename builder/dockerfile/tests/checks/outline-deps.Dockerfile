ARG Z=1
ARG Y=$Z
ARG X=${Y:-q}
ARG W=w
FROM busybox:$X AS one
ARG W
FROM one AS two
ARG V=$W
ARG V=twice
FROM two
COPY --from=one / /
