FROM scratch
COPY . /
# parity: context=own
