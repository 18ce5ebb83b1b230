FROM busybox AS a
RUN echo a > /f
FROM busybox AS b
RUN echo b > /f
FROM scratch
COPY --from=a /f /a
COPY --from=b /f /b
