from busybox as a
From busybox AS b
from busybox as c
run true
