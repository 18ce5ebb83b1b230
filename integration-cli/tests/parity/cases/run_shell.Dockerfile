FROM busybox
RUN echo "a  b" > /f && echo $HOME > /h && echo 'single $HOME' > /s
