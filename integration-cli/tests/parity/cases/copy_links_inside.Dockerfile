FROM scratch
COPY dir /d
COPY dir/l* /x/
