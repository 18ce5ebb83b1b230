ARG TAG=latest
FROM busybox:$TAG
RUN echo x > /x
