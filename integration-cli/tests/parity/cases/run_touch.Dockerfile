FROM busybox
RUN echo x > /f && touch -d "2001-02-03 04:05:06" /f && mkdir /d && touch -d "2002-02-03 04:05:06" /d
