FROM busybox
RUN ec\
ho joined > /f
ENV LO\
NG=1
