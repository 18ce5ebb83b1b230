FROM busybox
RUN test -d /proc/self && test -d /sys/kernel && test -c /dev/null && test -c /dev/zero && test -d /dev/shm && echo ok > /ok
