FROM busybox
COPY a <<EOF
EOF
