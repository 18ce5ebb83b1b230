FROM busybox AS a
ONBUILD RUN echo trigger > /t
ONBUILD ENV T=1
ONBUILD COPY a.txt /c
FROM a
RUN cat /t > /u
