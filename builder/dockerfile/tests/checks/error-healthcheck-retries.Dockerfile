FROM busybox
HEALTHCHECK --retries=x CMD y
