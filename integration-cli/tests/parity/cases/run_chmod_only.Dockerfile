FROM busybox
COPY a.txt /a
RUN chmod 600 /a
