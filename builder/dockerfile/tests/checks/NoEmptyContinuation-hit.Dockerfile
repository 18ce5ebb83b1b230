FROM busybox
RUN a \

 && b \
   
 && c
COPY x \

\
 /y
ENV A=1
