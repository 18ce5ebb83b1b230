FROM busybox
CMD echo hi
ENTRYPOINT exec top \
  -b
cmd x
