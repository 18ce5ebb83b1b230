FROM busybox
USER app
COPY a.txt /f
WORKDIR /w
COPY a.txt .
