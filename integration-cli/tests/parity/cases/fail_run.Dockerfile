FROM busybox
RUN echo before && exit 7
# parity: error="exit code: 7"
