FROM busybox AS a
RUN echo x > /x
FROM busybox
RUN --mount=type=bind,from=a,source=/x,target=/y cat /y > /z
RUN --mount=from=a,target=/root-of-a ls /root-of-a > /ls
