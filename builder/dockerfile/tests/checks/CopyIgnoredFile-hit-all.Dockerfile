FROM busybox
COPY . /all
ADD / /x
COPY ./ sub /y/
