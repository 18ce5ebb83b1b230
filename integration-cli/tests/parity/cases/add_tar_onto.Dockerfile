FROM busybox
RUN mkdir -m 700 /set && echo old > /set/uid && echo keep > /set/keep
ADD archive.tar /
