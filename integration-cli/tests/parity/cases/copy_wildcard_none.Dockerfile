FROM scratch
COPY nothing*.zip /
