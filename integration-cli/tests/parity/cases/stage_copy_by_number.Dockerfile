FROM busybox
RUN echo 1 > /one && chmod 640 /one
FROM scratch
COPY --from=0 /one /copied
