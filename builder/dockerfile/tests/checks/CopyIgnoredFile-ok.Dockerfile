FROM busybox AS a
COPY src/ /x
COPY . /y
COPY <<a.txt /z/
a.txt
FROM busybox
COPY --from=a /a.txt /
