//! Registry client: resolve, pull, push, auth, mirrors.
//!
//! **For:** moving images between a registry (Docker Registry HTTP API V2, OCI distribution) and a
//! [`ContentStore`](lapstrake_layerstore_store::ContentStore), trusting the registry with nothing: every byte is
//! checked against the digest and size that named it, every document has a size limit, every wait has an end.
//!
//! **Not for:** unpacking layers, naming images, or choosing what to pull; nor for reading credentials from anywhere
//! ([`CredentialSource`] is implemented by whoever has them).
//!
//! ```text
//!  Reference ─► RegistryConfig::endpoints ─► [mirror, …, registry]     tried in order
//!                                                  │
//!   RegistryClient ── resolve ──► Resolved (descriptor by tag)
//!        │          ── image ───► ResolvedImage (index? → manifest → config; in the store)
//!        │          ── layers ──► each layer streamed, verified, committed (bounded, shared, resumed)
//!        │          ── push ────► blobs (exists? mount? upload), then manifests, root last
//!        │
//!        └─ send: scheme → Authorization (challenge, token cache) → redirects → retry/backoff → stall watch
//! ```
//!
//! Futures may be dropped at any point: nothing half-received is ever published, because a blob enters the store only
//! by [`BlobWriter::commit`](lapstrake_layerstore_store::BlobWriter::commit) with its digest and size.
//! Everything that a pull stores is held by the caller's lease before it is looked for, so collection never takes it.
#![forbid(unsafe_code)]

mod auth;
mod blob;
mod challenge;
mod client;
mod config;
mod credentials;
mod error;
mod manifest;
mod options;
mod progress;
mod pull;
mod push;
mod referrers;
mod sink;
mod tags;
mod transport;

pub use client::RegistryClient;
pub use config::{HostConfig, KeyPair, RegistryConfig};
pub use credentials::{
    Anonymous, CredentialSource, Credentials, CredentialsError, Secret, StaticCredentials, Token,
    TokenRequest, is_docker_hub,
};
pub use error::{Access, ErrorKind, RegistryError, ServerMessage};
pub use manifest::{Resolved, ResolvedImage};
pub use options::{ClientOptions, UploadMode};
pub use progress::{Item, ProgressFn, TransferEvent, TransferStatus};
pub use pull::{LayerQuery, PullTarget, Pulled};
pub use push::{PushSource, Pushed};
