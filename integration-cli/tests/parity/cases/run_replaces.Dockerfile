FROM busybox
RUN echo x > /f && mkdir /d && touch /d/x
RUN rm /f && mkdir /f && rm -r /d && echo y > /d
