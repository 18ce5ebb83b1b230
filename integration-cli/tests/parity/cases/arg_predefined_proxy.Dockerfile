FROM busybox
RUN echo "$HTTP_PROXY $no_proxy" > /p
# parity: --build-arg HTTP_PROXY=http://127.0.0.1:9 --build-arg no_proxy=localhost
