FROM busybox
RUN echo "[$LATE]" > /early
ARG LATE=x
RUN echo "[$LATE]" > /late
