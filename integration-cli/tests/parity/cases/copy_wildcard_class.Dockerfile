FROM scratch
COPY [ab].txt /c/
COPY [^a].txt /n/
