FROM scratch
COPY f[[]3].log /x/
