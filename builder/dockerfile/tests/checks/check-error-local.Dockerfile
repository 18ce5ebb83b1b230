# check=error=true
FROM busybox
# check=skip=JSONArgsRecommended
CMD a
# check=error=false
ENTRYPOINT ["a"]
