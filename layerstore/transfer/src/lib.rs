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

mod ahead;
mod archive;
mod blobs;
mod cancellable;
mod error;
mod gzip;
mod import;
mod index;
mod layers;
mod load;
mod manifest;
mod pull;
mod pull_store;
mod push;
mod unpack;

pub use archive::{
    HeldImages, LayoutContents, OCI_LAYOUT, SaveImage, layout_entries, save, write_oci_archive,
};
pub use blobs::{
    BlobCompression, BlobOptions, blob_content, described, layer_blobs, layer_media_type, make_blobs,
};
pub use error::{ErrorKind, TransferError};
pub use import::import;
pub use index::{ImageIndex, make_index, stored_index, stored_manifest};
pub use layers::{blob_chains, layer_names, layer_tar, layers};
pub use load::{LoadEvent, Loaded, load};
pub use manifest::{
    ImageManifest, ManifestForm, ManifestOptions, image_manifest, make_manifest, write_manifest,
};
pub use pull::{PulledImage, pull_image, unpacked};
pub use pull_store::{PullOutcome, pull};
pub use push::{blob_lenders, lenders, push};
pub use unpack::{LayerBlob, UnpackEvent, blob_diff_id, unpack};
