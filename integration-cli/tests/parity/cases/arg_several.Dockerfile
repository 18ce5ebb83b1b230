FROM busybox
ARG A=1 B=2
RUN echo "$A $B" > /a
