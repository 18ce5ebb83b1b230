# a_long_argument_name is long
ARG a_long_argument_name=a_longer_value_than_its_name
# b is ünïcödé
ARG b=ö
ARG c
FROM busybox:$a_long_argument_name$b$c AS x
