FROM parent
CMD b
