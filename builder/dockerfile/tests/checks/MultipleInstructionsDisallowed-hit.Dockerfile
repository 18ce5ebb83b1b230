FROM busybox
CMD ["a"]
cmd ["b"]
CMD ["c"]
ENTRYPOINT ["a"]
ENTRYPOINT ["b", \
"c"]
HEALTHCHECK NONE
HEALTHCHECK CMD true
