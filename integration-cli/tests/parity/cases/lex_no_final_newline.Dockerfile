FROM busybox
RUN echo a > /f