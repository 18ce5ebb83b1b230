FROM busybox
ENV A=1 B="two words" C=three\ words D='q $A' E=$A$A
ENV F old form  with spaces
ENV G=${A} H="$B-$C" A=changed I=$A
RUN env | grep -E "^[A-I]=" | sort > /env
