FROM busybox
ARG A="two words"
ARG B='$A'
ARG C="$A!"
RUN echo "$A|$B|$C" > /a
