FROM busybox AS Bad
CMD a
MAINTAINER x
RUN a \

b
cmd b
FROM bad
ENV a b
FROM scratch
COPY --from=bad $x /
