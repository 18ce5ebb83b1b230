//! Runs one process in a container: namespaces, cgroups, seccomp, mounts, network.
//!
//! This crate is *not* for deciding what to run, preparing snapshots or checking entitlements; the engine does that.
//!
//! ```text
//!  engine ── ProcessSpec, ProcessIo, CancellationToken ──► dyn Executor ──► ExitStatus
//!                                                        │
//!                               NativeExecutor ──────────┴───────── OciRuntime (runc, crun)
//!                                     │ plan: everything decided before the first system call
//!                                     ▼
//!                       helper process (single-threaded re-exec of the daemon)
//!                                     │ clone
//!                                     ▼
//!                       container's pid 1: mounts, pivot_root, credentials, seccomp, exec
//! ```
#![deny(unsafe_code)]

mod error;
mod native;
mod run;
mod runtime;
mod spec;

pub use error::ExecError;
pub use native::{Helper, HelperOptions, NativeExecutor, maybe_run_helper};
pub use run::{BoxFuture, Executor, ExitStatus, OutputSink, ProcessIo};
pub use runtime::OciRuntime;
pub use spec::{
    DnsConfig, ExtraHost, MountKind, MountSpec, NetworkMode, ProcessSpec, Resources, RunId, SecurityMode,
    Ulimit,
};
