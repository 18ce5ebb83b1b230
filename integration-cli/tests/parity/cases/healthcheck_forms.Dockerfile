FROM busybox
HEALTHCHECK --interval=5s --timeout=3s --start-period=1m --retries=2 CMD wget -q localhost || exit 1
