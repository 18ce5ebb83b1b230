//! Layer tar streams to directories and back: safe apply, deterministic diff, compression.
//!
//! ```text
//!   blob ── decompress ──► tar ── apply ──────────► difference of an active snapshot, DiffID
//!   request body ───────► tar ── unpack_context ──► directory
//!   ADD a.tar.gz ───────► tar ── unpack_archive ──► directory below a root
//!   committed snapshot ── write_layer ────────────► tar, DiffID
//!   any tree ─────────── write_tree, write_trees ─► tar
//!   tar ──────────────── write_estargz ─► blob, DiffID of what it decompresses to
//! ```
//!
//! Everything blocks, streams, and holds a few MiB at most (plus some 200 bytes for each directory, whiteout and hard
//! linked inode of an archive). Archives come from strangers: no entry can reach outside of the target, whatever its
//! name, its links, or the links made by entries before it; `unpack` tells how.
//!
//! This crate is not for: choosing which layer goes where (`layerstore/store`), moving blobs (`layerstore/registry`).

#![forbid(unsafe_code)]

mod apply;
mod archive;
mod compression;
mod deletions;
mod error;
mod estargz;
mod fsat;
mod layer;
mod limits;
mod lower;
mod tar;
mod unpack;

pub use apply::{Applied, apply};
pub use archive::{ArchiveReader, Member, MemberKind};
pub use compression::{Compression, Decompressed, decompress};
pub use error::{DiffError, EntryName, ErrorKind};
pub use estargz::{Estargz, write_estargz};
pub use layer::{ArchivedTree, LayerDigest, WriteOptions, write_layer, write_tree, write_trees};
pub use limits::Limits;
pub use unpack::{ArchiveOptions, Unpacked, is_archive, unpack_archive, unpack_context};
