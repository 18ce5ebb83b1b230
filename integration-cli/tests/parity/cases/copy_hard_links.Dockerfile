FROM scratch
COPY hard1 hard2 /h/
COPY . /all/
