FROM busybox
ENV a=b c=d
LABEL a=b
ENV x='y z'
