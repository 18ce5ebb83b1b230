//! Images into and out of the stores: pull, push, load, save, import, and their layers' tar streams.
//!
//! ```text
//!   registry ── pull ──► blobs ── unpack ──► Tree        archive ── load ──► blobs ── unpack ──► image
//!   Tree ── layers ──► Layer (DiffID) ── layer_tar ──► save │ push
//! ```
//!
//! A layer's tar stream comes from a blob where there is one, and is written anew from the snapshot where there is none; either
//! way it has the DiffID that the image's config names, or it is an error.
//!
//! This crate is not for: HTTP, the rendering of progress, or deciding what to keep.

#![forbid(unsafe_code)]

mod error;
mod layers;
mod pull;
mod unpack;

pub use error::TransferError;
pub use layers::{layer_tar, layers};
pub use pull::{PulledImage, pull_image};
pub use unpack::{LayerBlob, UnpackEvent, unpack};
