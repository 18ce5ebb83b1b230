FROM scratch
COPY dir /new/
COPY a.txt /other/
