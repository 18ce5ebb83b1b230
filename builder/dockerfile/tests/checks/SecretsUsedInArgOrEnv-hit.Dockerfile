ARG GLOBAL_TOKEN=x
FROM busybox
ARG API_KEY npm_token=1
ENV DB_PASSWORD=x Auth=y
ENV secret old
ARG my_secret_2=1
ENV A=1 pword=2
