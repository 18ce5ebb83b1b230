from busybox
RUN true
copy a /
Env C=1
