FROM busybox
ARG PUBLIC_KEY TOKEN_FILE
ENV AUTH_VERSION=1 SECRETS=2 passphrase=3 apikeys=4 token_public=5
LABEL token=x
