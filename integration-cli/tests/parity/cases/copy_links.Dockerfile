FROM scratch
COPY dir/link /l
COPY dirlink /dl
COPY dirlink/ /dl2/
COPY dir/up /up
