FROM busybox
# check=skip=all

CMD a
