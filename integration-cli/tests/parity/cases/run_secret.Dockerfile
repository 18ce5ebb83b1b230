FROM busybox
RUN --mount=type=secret,id=word cp /run/secrets/word /copied && stat -c "%a %u %g" /run/secrets/word > /stat
RUN --mount=type=secret,id=word,target=/s/w,mode=0444,uid=5,gid=6 stat -c "%a %u %g" /s/w > /stat2
# parity: --secret id=word,src={context}/a.txt
