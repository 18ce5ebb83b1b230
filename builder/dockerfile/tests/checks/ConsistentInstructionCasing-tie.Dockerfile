FROM busybox
run true
