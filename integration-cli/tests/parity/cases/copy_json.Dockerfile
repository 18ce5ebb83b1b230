FROM scratch
COPY ["with space.txt", "/to here/"]
COPY ["a.txt", "b.txt", "/x/"]
