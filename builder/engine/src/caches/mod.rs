//! Caches that travel: what a build brings with it (`--cache-from`) and leaves for others (`--cache-to`), in BuildKit's forms.
//!
//! ```text
//!   CacheSource ─ imports ─► manifest ─► CacheDocument ─► ImportedCache ─► the solver asks it after its own cache
//!                              │ blobs: a registry, a directory, a client's    └─ fetched when a result is needed
//!   keys of the build ─ exports ─► records, results ─► blobs of layers ─► CacheDocument, manifest ─► registry │ directory │ client
//! ```

use std::time::SystemTime;

mod blobs;
mod directory;
mod exports;
mod fault;
mod imports;
mod options;

pub(crate) use exports::{Solved, snapshots};
pub use fault::CacheFault;
pub(crate) use imports::Imports;
use lapstrake_builder_progress::{Event, VertexHandle, Warning};
use lapstrake_layerstore_oci::Timestamp;
pub use options::{CacheExportOptions, CacheForm, CacheMode, CacheSource, CacheTarget, LocalManifest};

/// The annotation of a layer's descriptor that says what it unpacks to.
const UNCOMPRESSED: &str = "containerd.io/uncompressed";
/// The annotation that says when the layer was made.
const CREATED_AT: &str = "buildkit/createdat";

/// When others say that they made something; `None` for what is no time that ours has a number for, such as Go's zero.
fn made_at(time: &Timestamp) -> Option<SystemTime> {
    let seconds = time.to_time().ok().filter(|time| (1970..2262).contains(&time.year()))?;
    Some(seconds.into())
}

/// Tells the client of something that the build goes on without.
fn warn(vertex: &VertexHandle, why: String) {
    vertex.emit(&Event::Warning(Warning {
        vertex: vertex.digest(),
        level: 1,
        short: why.into_bytes(),
        detail: Vec::new(),
        url: String::new(),
        source: None,
        ranges: Vec::new(),
    }));
}
