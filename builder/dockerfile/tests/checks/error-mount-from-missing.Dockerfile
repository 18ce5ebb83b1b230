FROM busybox AS assets
FROM busybox
RUN --mount=from=asset,target=/a true
