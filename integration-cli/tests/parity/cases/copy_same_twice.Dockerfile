FROM scratch
COPY a.txt /
COPY a.txt /
