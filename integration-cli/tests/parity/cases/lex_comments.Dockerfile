# first
FROM busybox
# second
RUN echo "# not" > /f # shell
  # indented
ENV A=#b
