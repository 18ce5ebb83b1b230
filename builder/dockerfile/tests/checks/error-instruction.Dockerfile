FROM busybox
RUN true
COPPY a b
RUN x
RUN y
RUN z
