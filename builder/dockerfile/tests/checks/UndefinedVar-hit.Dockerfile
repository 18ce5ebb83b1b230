FROM busybox AS a
ARG FOO
ENV BAR=$BAZ QUX=${BAZ}
COPY $FO $FOO $BAZ /
RUN --mount=type=cache,target=$CACHE echo $NOTHING
WORKDIR /$BARR
LABEL $k=$v
USER $usr
ADD <<EOF /f
$inside and $FOO
EOF
EXPOSE $prt
