FROM scratch
COPY *.txt /t/
COPY f?.log /l/
COPY d*/o*.txt /o/
