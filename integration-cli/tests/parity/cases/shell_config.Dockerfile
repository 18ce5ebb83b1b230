FROM busybox
SHELL ["/bin/ash", "-c"]
CMD x
ENTRYPOINT y
HEALTHCHECK CMD z
