FROM scratch
COPY dir/../a.txt /
COPY ./dir/./sub /s
COPY /a.txt /abs
