//! What a build leaves behind: images in the store and in registries, layouts, files.
//!
//! ```text
//!   type, attributes ─► Output::parse ─► Output ─┐
//!   PlatformResult (Tree, config, attestations) ─┴─► Exporter::export ─► Export ─► Exporter::publish
//!                                                        │                          (push: what others see)
//!        finished: diff ids, history, times ◄────────────┤
//!        written:  blobs ─► manifests ─► index           ├─► image   store, names
//!                                                        ├─► layout  tar stream, directory, client's content store
//!                                                        └─► files   directory, tar stream
//! ```
//!
//! **Not for:** how layers and archives are written (`layerstore/transfer`, `layerstore/diff`), or how registries are spoken to.

#![forbid(unsafe_code)]

mod annotations;
pub mod attestation;
mod attrs;
mod compatibility;
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
mod sbom;
mod statement;
mod stream;
mod written;

pub use annotations::{AnnotationLevel, Annotations};
pub use attestation::{Attestation, AttestationContent, AttestationKind, Predicate, Subject, SubjectKind};
pub use attrs::split_fields;
pub use compatibility::Compatibility;
pub use error::ExportError;
pub use exporter::{Export, Exporter};
pub use request::{
    DanglingName, Destination, Epoch, ExportRequest, Exported, ImageOptions, ImageOutput, LayoutOutput,
    LocalOutput, Names, Output, PlatformResult, PushOptions, TreeOutput,
};
