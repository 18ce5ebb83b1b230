FROM busybox
RUN mkdir /real && ln -s /real /alias
WORKDIR /alias/new
RUN echo x > f
