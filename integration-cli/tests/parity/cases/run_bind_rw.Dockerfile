FROM busybox
RUN --mount=type=bind,target=/m,rw echo changed > /m/a.txt && cat /m/a.txt > /seen
RUN --mount=type=bind,target=/m cat /m/a.txt > /after
