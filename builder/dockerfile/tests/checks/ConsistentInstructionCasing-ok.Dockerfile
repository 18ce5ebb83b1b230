ARG x=1
arg y=2
from busybox
run true
