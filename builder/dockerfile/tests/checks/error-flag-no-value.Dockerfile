FROM busybox
COPY --from a /
