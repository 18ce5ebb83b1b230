FROM apline:3
