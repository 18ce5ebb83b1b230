//! Runs one process in a container: namespaces, cgroups, seccomp, mounts, network.
