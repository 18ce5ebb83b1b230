//! File actions on trees (copy, mkdir, mkfile, rm, symlink, merge, diff), and digests of their content.
//!
//! ```text
//!   Tree, Selectors ──ContentHasher::digest──► Digest      BuildKit's content digest: the cache key of what is copied
//!   Tree, a source ──copied───────────────► hashes      what Moby's classic history says of copied files
//!   FileOp, Trees ────apply──────────────────► Trees       COPY, ADD, WORKDIR
//!   Trees ────────────merge──────────────────► Tree        COPY --link
//!   Tree, Tree ───────diff───────────────────► Tree
//! ```
//!
//! Everything blocks: call it from a blocking thread. This crate is not for: which action a Dockerfile means
//! (`builder/dockerfile`), keys of ops (`builder/llb`), layers as tar streams (`layerstore/diff`), running processes.
//!
//! # Why nothing can leave a tree
//!
//! Trees are made by strangers. Paths in them are resolved with `openat2(RESOLVE_IN_ROOT | RESOLVE_NO_MAGICLINKS)` below the
//! tree's root, or component by component from open directories without following links. No path of a tree is ever handed
//! to a call that resolves it from the daemon's own root.

#![forbid(unsafe_code)]

mod action;
mod at;
mod digest;
mod error;
mod glob;
mod layers;
mod patterns;
mod tarsum;

pub use action::{UnknownOwner, apply, apply_with};
pub use digest::{ContentDigests, ContentHasher, FileDigest, FileRecords, file_prefix};
pub use error::{FilesError, OsError};
pub use layers::{diff, merge};
pub use tarsum::{CopiedFrom, Hashed, copied, copied_together, downloaded};
