FROM busybox AS a
SHELL ["/bin/bash", "-c"]
CMD echo
FROM a
ENTRYPOINT echo
FROM busybox
CMD ["echo"]
ENTRYPOINT []
HEALTHCHECK CMD true
