//! What a build leaves behind: images in the store, archives, directories.
//!
//! ```text
//!   PlatformResult (Tree, ImageConfig) ──► finish (diff ids, history, times) ──► image store, names      Output::Image
//!                  │                                   ├─── manifests, an index of several ─► image store, oci archive
//!                  │                                   └──────────────────────► docker │ oci archive ─┐
//!                  └──► tar of the tree ──────────────────────────────────────────────────────────────┴─► Destination
//!                  └──► directory ─────────────────────────────────────────────────► the client's, or one of this machine
//! ```
//!
//! **Not for:** how layers and archives are written (`layerstore/transfer`, `layerstore/diff`), or registries.

#![forbid(unsafe_code)]

mod annotations;
pub mod attestation;
mod attrs;
mod config;
mod directory;
mod error;
mod exporter;
mod files;
mod finished;
mod image;
mod layout;
mod publish;
mod request;
mod rewrite;
mod statement;
mod stream;
mod written;

pub use annotations::{AnnotationLevel, Annotations};
pub use attestation::{Attestation, AttestationContent, AttestationKind, Subject, SubjectKind};
pub use attrs::split_fields;
pub use error::ExportError;
pub use exporter::{Export, Exporter};
pub use request::{
    DanglingName, Destination, Epoch, ExportRequest, Exported, ImageOptions, ImageOutput, LayoutOutput,
    LocalOutput, Names, Output, PlatformResult, PushOptions, TreeOutput,
};
