FROM scratch
COPY src /s
COPY dir/ /d/
