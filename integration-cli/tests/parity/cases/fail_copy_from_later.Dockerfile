FROM busybox AS target
COPY --from=later /x /
FROM busybox AS later
RUN touch /x
FROM target
