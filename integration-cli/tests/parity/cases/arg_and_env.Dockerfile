FROM busybox
ENV A=env
ARG A=arg
RUN echo $A > /a
ARG B=arg
ENV B=env
RUN echo $B > /b
ENV C=${A}x
ARG D=$C
RUN echo $D > /d
# parity: --build-arg A=cli --build-arg B=cli
