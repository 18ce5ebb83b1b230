FROM busybox AS a
RUN mkdir /o && echo x > /o/f && chown -R 11:12 /o && chmod 2750 /o
FROM busybox
COPY --from=a /o /1
COPY --from=a --chown=app /o /2
COPY --from=a /o/ /3/
