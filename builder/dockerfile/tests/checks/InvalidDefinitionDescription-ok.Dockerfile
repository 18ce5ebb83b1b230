# check=experimental=all
# A the a
ARG A=1
# build the stage
FROM busybox AS build
# anything

# b is
ARG a b
# no name
FROM busybox
# x
#
ARG z
