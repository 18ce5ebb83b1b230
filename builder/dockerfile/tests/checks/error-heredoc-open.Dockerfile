FROM busybox
RUN <<EOF
echo
echo more
