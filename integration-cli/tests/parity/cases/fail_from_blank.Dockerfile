ARG X
FROM $X
# parity: error="base name ($X) should not be blank"
