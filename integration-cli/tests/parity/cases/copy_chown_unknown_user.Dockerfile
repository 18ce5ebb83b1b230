FROM busybox
COPY --chown=nobodyhere a.txt /
