//! Moby graph drivers (overlay2, vfs) behind the Snapshotter contract.
