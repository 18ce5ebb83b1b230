FROM busybox
CMD ["a", "b"]
CMD echo $HOME "x"
