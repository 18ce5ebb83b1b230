FROM scratch
COPY deep /deep
COPY dir/sub/ /s/
