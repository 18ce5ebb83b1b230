FROM busybox
ENV a=${x:-1} b=${x-1} c=${x:+1} d=${x+1} e=\$x f='$x' g=${x#a} h=${x/a/b}
