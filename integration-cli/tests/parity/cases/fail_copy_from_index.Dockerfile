FROM busybox
COPY --from=5 /x /
# parity: error="invalid stage index"
