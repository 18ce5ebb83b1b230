FROM busybox AS Maker
RUN mkdir -p /out/deep && echo 1 > /out/deep/f && ln -s deep/f /out/l
FROM scratch
COPY --from=maker /out /in
