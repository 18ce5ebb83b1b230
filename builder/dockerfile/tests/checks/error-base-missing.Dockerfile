FROM busybox AS build

FROM biuld
RUN x
