FROM scratch
COPY run.sh suid ro empty /m/
