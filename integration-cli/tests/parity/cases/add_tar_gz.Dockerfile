FROM scratch
ADD archive.tar.gz /gz/
