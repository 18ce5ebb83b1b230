//! Where a build's input comes from: images, client directories, git, http, uploads.
//!
//! ```text
//!   pb::SourceOp ── Sources::open ──► dyn Source ── pin ──► cache key
//!                                        └───────── fetch ──► Tree
//!
//!   docker-image://  image   local image store │ registry ─► documents ─► layers unpacked onto each other
//!   oci-layout://    layout  session's content store ─► documents ─► layers unpacked onto each other
//!   …+blob://        blob    registry │ session's content store ─► one file
//!   local://         local   session │ directory │ tree ─► fresh draft, unchanged files hard-linked
//!   http(s)://       http    server │ session's upload ─► one file
//!   git://           git     the git program ─► bare repository ─► checkout
//! ```
//!
//! This crate is not for: deciding what is needed (`builder/dockerfile`), or when (`builder/solver`).

#![forbid(unsafe_code)]

mod attrs;
mod blob;
mod context;
mod error;
mod git;
mod http;
mod identifier;
mod image;
mod layout;
mod local;
mod material;
mod resolutions;
mod signature;
mod sources;
mod turns;

pub use context::{BuildMark, CommitObjects, LocalProvider, Source, SourceContext, SourceFacts, SourceKind};
pub use error::{ErrorKind, SourceError};
pub use http::SuffixedDigest;
pub use identifier::canonical_identifier;
pub use image::AttestationChain;
pub use material::{BlobMaterial, Material};
pub use sources::{SourceLimits, Sources, SourcesOptions};
