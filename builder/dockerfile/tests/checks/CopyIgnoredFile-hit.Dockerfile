FROM busybox
COPY out/bin a.txt /x/
ADD ./out /y
ADD *.txt /z/
COPY . /all
ADD https://example.org/a.txt /u
