FROM scratch
ADD archive.tar /
