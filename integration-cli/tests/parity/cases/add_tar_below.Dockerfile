FROM busybox
ADD archive.tar /to/here
