FROM busybox
SHELL ["/bin/sh", "-exc"]
RUN echo x > /f
SHELL ["/bin/ash", "-c"]
RUN echo $0 > /g
