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
//!                                     ▲ joined processes: the same namespaces, cgroups and rights
//! ```
#![deny(unsafe_code)]

mod architectures;
mod bundle;
mod caps;
mod cdi;
mod client;
mod elf;
mod error;
mod files;
mod helper;
mod limits;
mod native;
mod network;
mod plan;
mod run;
mod runtime;
mod seccomp;
mod spec;
mod streams;
mod sys;
mod talk;
mod user;
mod wire;

pub use architectures::Architectures;
pub use cdi::{
    CdiDevices, ContainerEdits, DeviceList, DeviceNode, DeviceRequest, HostMount, MountFlags, NodeKind,
};
pub use client::{Helper, HelperOptions, StartingHelper, maybe_run_helper};
pub use error::ExecError;
pub use limits::{Resources, Ulimit};
pub use native::NativeExecutor;
pub use network::{DefaultNetwork, Network, NetworkOptions, Subnet};
pub use run::{BoxFuture, Executor, ExitStatus, OutputSink, ProcessIo};
pub use runtime::OciRuntime;
pub use spec::{
    DnsConfig, ExtraHost, MountKind, MountSpec, NetworkMode, ProcessSpec, RunId, SecurityMode, StubPolicy,
};
pub use talk::{ExtraProcess, InputSource, Order, Signal, WindowSize};
