FROM busybox
ENV A=a EMPTY=
ENV B=${A:-x} C=${NONE:-y} D=${A:+z} E=${NONE:+z} F=${EMPTY:-d} G=${EMPTY:+e} H=\$A I='$A' J="\$A" K=$NONE
