FROM busybox
ADD --checksum=x https://example.org/a /
