# check=
FROM busybox
# check=skip=FromAsCasing,StageNameCasing
FROM busybox as Bad
# check=skip=ConsistentInstructionCasing,DuplicateStageName
from busybox AS bad
