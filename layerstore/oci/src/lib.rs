//! Digests, descriptors, platforms, references and Docker image configs: pure data, no I/O.
//!
//! **For:** the words every other crate shares. A value of one of these types is already validated, so nobody
//! downstream parses a digest, a reference or a platform out of a string again.
//!
//! **Not for:** fetching, storing or choosing blobs (`layerstore/registry`, `layerstore/store`), nor the runtime
//! spec. The only "I/O" is a pair of adapters over [`std::io`] traits that hash what passes through them.
//!
//! ```text
//!  Reference ──resolve──► Descriptor ──► Index ──(Platform, PlatformMatcher)──► Manifest
//!                                                                                ├─ config  → ImageConfig (ImageId = its Digest)
//!                                                                                └─ layers  → Descriptor (Digest: compressed)
//!  ImageConfig.rootfs.diff_ids: [DiffId] (Digest: uncompressed tar) ──► ChainId of each layer
//! ```
//!
//! JSON is written as Go's `encoding/json` writes it ([`gojson`]), because the bytes are hashed and compared with
//! what BuildKit and Moby make of the same value.
#![forbid(unsafe_code)]

mod config;
mod descriptor;
mod digest;
mod error;
pub mod gojson;
mod ids;
mod manifest;
mod media_type;
mod platform;
mod platform_match;
mod reference;
mod timestamp;

pub use config::{ContainerConfig, Healthcheck, History, ImageConfig, RootFs};
pub use descriptor::Descriptor;
pub use digest::{Algorithm, Digest, DigestReader, DigestWriter, Digester};
pub use error::OciError;
pub use ids::{ChainId, DiffId, ImageId};
pub use manifest::{Index, Manifest};
pub use media_type::{LayerCompression, MediaType};
pub use platform::Platform;
pub use platform_match::PlatformMatcher;
pub use reference::{AnyReference, Reference};
pub use timestamp::Timestamp;
