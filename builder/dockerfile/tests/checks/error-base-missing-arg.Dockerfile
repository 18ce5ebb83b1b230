ARG B=ubunut
FROM $B AS x
