from busybox AS a
run true
from busybox aS b
