FROM busybox
FROM Busy!box
