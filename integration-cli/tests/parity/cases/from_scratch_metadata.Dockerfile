FROM scratch
ENV A=b
LABEL c=d
COPY a.txt /a
