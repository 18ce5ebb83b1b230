//! Caches that travel: what a build brings with it (`--cache-from`) and leaves for others (`--cache-to`), in BuildKit's forms.
//!
//! ```text
//!   CacheSource ─ imports ─► manifest ─► CacheDocument ─► ImportedCache ─► the solver asks it after its own cache
//!                              │ blobs: a registry, a directory                └─ fetched when a result is needed
//!   keys of the build ─ exports ─► records, results ─► blobs of layers ─► CacheDocument, manifest ─► registry │ directory
//! ```

mod blobs;
mod directory;
mod exports;
mod fault;
mod imports;
mod options;

pub(crate) use exports::{Solved, snapshots};
pub use fault::CacheFault;
pub(crate) use imports::Imports;
pub use options::{CacheExportOptions, CacheForm, CacheMode, CacheSource, CacheTarget, LocalManifest};

/// The annotation of a layer's descriptor that says what it unpacks to.
const UNCOMPRESSED: &str = "containerd.io/uncompressed";
/// The annotation that says when the layer was made.
const CREATED_AT: &str = "buildkit/createdat";
