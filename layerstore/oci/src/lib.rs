//! Digests, descriptors, platforms, references and Docker image configs: pure data, no I/O.
