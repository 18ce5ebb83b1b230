//! Layer tar streams to directories and back: safe apply, deterministic diff, compression.
