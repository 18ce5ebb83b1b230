FROM busybox
COPY --chown=app a.txt /1
COPY --chown=app:extra a.txt /2
COPY --chown=1234 a.txt /3
COPY --chown=1234:5678 dir /4
COPY --chown=:extra a.txt /5
COPY --chown=nobody:2000 a.txt /new/6
