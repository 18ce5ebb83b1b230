FROM busybox
MAINTAINER Me <me@example.com>
