FROM scratch
COPY a.txt /
COPY a.txt /b
COPY a.txt b.txt /dir/
