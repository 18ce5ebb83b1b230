FROM busybox
RUN echo x > /a && ln /a /b && ln -s a /c && ln -s /nowhere /d
RUN ln /a /e
