# check=experimental=InvalidDefinitionDescription
# wrong text
ARG A=1
# build: the stage
FROM busybox AS build
# b is
# c is
ARG a b
# Build text
FROM busybox AS Build2
