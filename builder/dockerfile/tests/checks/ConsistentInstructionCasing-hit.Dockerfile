FROM busybox
run true
Copy a /
ENV A=1
env B=1
