FROM busybox
ENV A=1 \
    B=2 \
    # comment
    C=3
