FROM busybox
RUN <<EOF
echo
EOF
CMD a
