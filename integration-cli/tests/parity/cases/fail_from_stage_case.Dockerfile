FROM busybox AS Base
RUN echo x > /x
FROM bASE
RUN cat /x > /y
