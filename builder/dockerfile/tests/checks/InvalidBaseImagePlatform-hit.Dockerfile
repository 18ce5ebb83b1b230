FROM other:1 AS a
FROM --platform=$BUILDPLATFORM other:1
COPY --from=a / /
COPY --from=other:1 /a /b
