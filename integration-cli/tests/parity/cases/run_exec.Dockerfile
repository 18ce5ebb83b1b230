FROM busybox
RUN ["/bin/sh", "-c", "echo exec > /f"]
RUN ["touch", "/with space"]
