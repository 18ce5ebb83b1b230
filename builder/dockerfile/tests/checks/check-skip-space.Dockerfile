# check=skip=JSONArgsRecommended,MaintainerDeprecated
FROM busybox as x
MAINTAINER a
CMD a
