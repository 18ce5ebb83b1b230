//! Live client sessions: registry, and typed callers for filesync, auth, secrets, ssh, uploads and OCI layouts.
//!
//! A build's files, logins and secrets stay with the client until they are asked for. The client opens a connection, the daemon turns it
//! round and becomes the gRPC *client* on it; this crate is that side.
//!
//! What it is for: knowing which sessions live ([`Sessions`]), and asking one of them something ([`SessionCaller`]). What it is not for: HTTP
//! routes and the `101 Switching Protocols` (`api/server`), caches of what was fetched (`builder/source`), what an exporter writes
//! (`builder/exporter`).
//!
//! ```text
//!   POST /session ──► api/server ──(headers, hijacked stream)──► Sessions::reserve ─► Reservation::serve
//!                                                                     │                    │ HTTP/2, health checks
//!   a build names a session ──► Sessions::get(id, wait) ──► SessionCaller ◄────────────────┘
//!                                                             │
//!          sync_dir · credentials · secret · ssh_agent · upload · check_policy · layout_blob · send_file · send_dir · find_outputs
//! ```
//!
//! A session that ends, for whatever reason, fails the calls that use it with [`Error::Closed`] at once. Every call is cancel-safe by drop unless
//! its documentation says otherwise.
#![forbid(unsafe_code)]

mod auth;
mod caller;
mod channel;
mod content;
mod content_write;
mod error;
mod exporter;
mod file_sink;
pub mod fsutil;
mod info;
mod metadata;
mod policy;
mod registry;
mod secret;
mod ssh;
mod upload;

pub use auth::{Credentials, Token, TokenRequest};
pub use caller::SessionCaller;
pub use content::{CONTENT_STORE_HEADER, ClientBlob};
pub use content_write::BlobUpload;
pub use error::{CloseReason, Error, TransferError};
pub use exporter::WantedOutput;
pub use file_sink::{ExporterId, FileSink};
pub use fsutil::{Coverage, Destination, DirTree, Received, Sent, SyncRequest, TreeReader};
pub use info::{HealthCheck, SessionId, SessionInfo};
pub use policy::PolicyAnswer;
pub use registry::{CONNECT_WAIT, Reservation, Sessions, Wait};
pub use secret::{MAX_SECRET_SIZE, Secret};
pub use ssh::{DEFAULT_SSH_ID, SshAgent, SshSocket};
pub use upload::{UPLOAD_HOST, Upload};
