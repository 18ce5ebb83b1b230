# check=skip=JSONArgsRecommended;error=true
FROM busybox
CMD a
