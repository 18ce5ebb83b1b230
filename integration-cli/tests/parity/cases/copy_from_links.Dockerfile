FROM busybox AS a
RUN mkdir /o && echo x > /o/f && ln /o/f /o/g && ln -s f /o/s && ln -s /etc/passwd /o/abs && mknod /o/p p
FROM scratch
COPY --from=a /o /o
