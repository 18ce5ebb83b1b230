FROM busybox
RUN mkdir -m 777 /w
USER app
RUN id -u > /w/u; id -g > /w/g; echo $HOME > /w/h
USER nobody:extra
RUN id -u > /w/u2; id -g > /w/g2
USER 4242
RUN id -u > /w/u3; id -g > /w/g3
