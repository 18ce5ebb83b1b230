FROM busybox
CMD ["x"]
ENTRYPOINT ["/bin/y"]
