FROM busybox
RUN a \
# comment
 && b
COPY x \
 /y
