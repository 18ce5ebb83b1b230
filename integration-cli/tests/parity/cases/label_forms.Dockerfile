FROM busybox
LABEL a=1 "b c"="d e" f='g' h="x\
y"
LABEL com.example.x old form
LABEL a=2 empty=""
# parity: --label cli=yes --label a=cli
