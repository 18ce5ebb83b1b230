FROM busybox
ENV A=${B
RUN x
