FROM busybox
ENV A=1 B=2
ARG C=3
RUN echo "$A $B $C" > /e; echo $PATH > /p; echo "${A:-x}${Z:-y}" > /d
