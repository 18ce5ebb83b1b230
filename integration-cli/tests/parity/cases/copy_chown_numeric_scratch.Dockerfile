FROM scratch
COPY --chown=7:8 dir /d
