FROM scratch
COPY d[ie]* /d/
