# check=skip=a;error=0;experimental=b;skip=c
FROM busybox
