FROM other:1 AS a
FROM busybox
