FROM scratch
COPY a.txt /f
COPY b.txt /f
