FROM busybox
RUN mkdir /d && touch /d/x && echo y > /y
RUN mv /d /e && mv /y /z
