FROM busybox
ENV FROM=a TO=/here
ARG EXT=txt
COPY ${FROM}.$EXT $TO/${FROM}
COPY --chown=${OWNER:-app} a.txt /o
