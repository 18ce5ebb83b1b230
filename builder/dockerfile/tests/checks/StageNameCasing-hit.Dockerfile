FROM busybox AS Build
FROM busybox AS BUILD2
FROM Build AS fine-3
