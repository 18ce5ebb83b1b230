FROM scratch
COPY dir /d
COPY dir/ /e/
COPY dir/sub /f
