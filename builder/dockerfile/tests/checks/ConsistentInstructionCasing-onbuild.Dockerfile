FROM busybox
ONBUILD run true
onbuild RUN true
