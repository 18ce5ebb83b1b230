FROM busybox
CMD ["/bin/echo", "a b", "$HOME"]
