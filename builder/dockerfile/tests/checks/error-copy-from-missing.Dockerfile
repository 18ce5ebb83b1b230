FROM busybox AS assets
FROM busybox
COPY --from=assests /a /b
