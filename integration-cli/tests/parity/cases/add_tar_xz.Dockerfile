FROM scratch
ADD archive.tar.xz /xz/
