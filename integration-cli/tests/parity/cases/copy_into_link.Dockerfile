FROM busybox
RUN mkdir /real && ln -s /real /alias && ln -s /real/new /file
COPY a.txt /alias/
COPY dir /alias/d
