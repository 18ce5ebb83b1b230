FROM busybox
ADD --chown=app:extra archive.tar /x/
