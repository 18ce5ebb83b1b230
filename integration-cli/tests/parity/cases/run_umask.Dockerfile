FROM busybox
RUN umask 027 && echo x > /f && mkdir /d
RUN echo y > /g
