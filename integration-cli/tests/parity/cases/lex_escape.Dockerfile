# escape=`
FROM busybox
RUN echo a `
  b > /f
ENV A=`$x B="c`"d"
COPY a.txt `
  /x/
