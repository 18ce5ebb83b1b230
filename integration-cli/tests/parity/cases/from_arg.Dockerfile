ARG IMAGE=scratch
FROM ${IMAGE}
RUN echo x > /x
# parity: --build-arg IMAGE=busybox
