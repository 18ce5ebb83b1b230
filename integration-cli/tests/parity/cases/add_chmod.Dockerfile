FROM busybox
ADD --chmod=600 a.txt /x
