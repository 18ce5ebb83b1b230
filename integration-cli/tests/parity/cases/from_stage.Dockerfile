FROM busybox AS base
ENV A=1
RUN echo base > /base
FROM base
RUN echo "$A" > /a
