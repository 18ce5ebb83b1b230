FROM busybox
ARG U=app
USER $U
USER ${U}:extra
