# A what a is
ARG A=1
ARG B=$A-2
# unused not used
ARG UNUSED=3
# base where all begins
FROM busybox:$A AS base
# C in the stage
ARG C D=4
FROM busybox AS other
ARG F=6 A
RUN --mount=type=secret,id=tok --mount=type=secret,id=second,env=S true
# target what is made
FROM base AS target
ARG B
# E text
ARG E=${B}x
RUN --mount=type=secret,id=tok,required=true --mount=type=secret,target=/x/name --mount=type=ssh --mount=type=ssh,id=git,required true
COPY --from=other / /
FROM scratch AS unused
ARG G
