FROM busybox AS build_a.1
FROM build_a.1
