FROM busybox
ARG A=default
ARG B
ARG C=${A}-c
RUN echo "$A $B $C" > /a
# parity: --build-arg A=given --build-arg B=b
