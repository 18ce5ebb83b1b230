FROM busybox
RUN mkdir /v && echo x > /v/f
VOLUME /v /w
VOLUME ["/json one", "/two"]
RUN echo y > /v/g
