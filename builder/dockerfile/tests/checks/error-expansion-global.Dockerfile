ARG A=${B:?no B}
FROM busybox$A
