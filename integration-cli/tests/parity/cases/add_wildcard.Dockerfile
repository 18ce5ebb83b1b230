FROM scratch
ADD arch*.tar *.txt /x/
