FROM scratch
ADD notarchive.tar /x/
