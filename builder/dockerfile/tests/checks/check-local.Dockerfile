FROM busybox
# check=skip=JSONArgsRecommended // reason
CMD a
# check=skip=all
ENTRYPOINT a
#check=bad
CMD b
# check=experimental=all
# bad
ARG x
# first
# check=skip=all
# last
CMD c
