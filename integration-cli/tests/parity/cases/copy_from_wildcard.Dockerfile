FROM busybox AS a
RUN touch /x1 /x2 /y1
FROM scratch
COPY --from=a /x* /to/
