FROM busybox
RUN i=0; while [ $i -lt 200 ]; do echo line $i; i=$((i+1)); done > /lines
