FROM busybox
RUN echo x > /f && chown app:extra /f && chmod 4711 /f && mkdir -m 1777 /t && chown 12345:54321 /t
