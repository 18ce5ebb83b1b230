FROM busybox
rnu x
