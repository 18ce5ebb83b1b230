FROM scratch
COPY é.txt /ü/
