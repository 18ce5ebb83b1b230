FROM scratch
COPY emptydir /e
COPY sticky /s
