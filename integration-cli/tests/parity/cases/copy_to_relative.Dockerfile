FROM busybox
WORKDIR /w/x
COPY a.txt .
COPY b.txt ./sub/
COPY dir ..
