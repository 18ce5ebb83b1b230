FROM busybox AS a
RUN exit 3
FROM busybox
COPY --from=a / /x
# parity: error="exit code: 3"
