# check=experimental=all
FROM busybox
# a comment

ARG A=1
