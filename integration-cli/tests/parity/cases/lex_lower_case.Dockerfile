from busybox as x
run echo a > /a
copy a.txt /
env K=v
