//! Why a process could not be run.

use std::{io, path::PathBuf};

use crate::RunId;

/// Why a process could not be run (to its end). A process that ends with a nonzero code or by a signal is no error.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ExecError {
    /// The description is not usable.
    #[error("{field}: {reason}: {value:?}")]
    Invalid {
        /// Which part of [`crate::ProcessSpec`].
        field: &'static str,
        /// What it says.
        value: String,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// The user or group is not one of the image's.
    #[error("unable to find {kind} {name}: no matching entries in {} file", file.trim_start_matches("/etc/"))]
    NoSuchUser {
        /// `user` or `group`.
        kind: &'static str,
        /// The name asked for.
        name: String,
        /// The file searched.
        file: &'static str,
    },
    /// The program is not there or is not executable; a shell would exit with `code`.
    #[error("exec: {program:?}: {reason}")]
    Program {
        /// The program asked for.
        program: String,
        /// What is wrong.
        reason: String,
        /// 127 when not found, 126 when it cannot be executed.
        code: i32,
    },
    /// The program is for a processor that this machine does not have, and nothing emulates it.
    #[error("exec: {program:?}: exec format error: it is a program for {architecture}{}", unfound(*has_emulator))]
    Foreign {
        /// The program asked for.
        program: String,
        /// What it is for, in Go's name.
        architecture: String,
        /// Whether there is an emulator that a container does not find, as it was registered without the flag F.
        has_emulator: bool,
    },
    /// A device that is needed is not one of this machine's.
    #[error("required device {name:?} is not registered")]
    NoDevice {
        /// As it was asked for.
        name: String,
    },
    /// A device cannot be had in a container.
    #[error("device {name}: {why}")]
    Device {
        /// Its qualified name.
        name: String,
        /// What stands against it.
        why: String,
    },
    /// A limit was asked for that means nothing, here or anywhere; in dockerd's words.
    #[error("{0}")]
    BadLimit(String),
    /// A limit was asked for that this machine cannot set.
    #[error("limit {limit}: {reason}")]
    Limit {
        /// Which limit.
        limit: String,
        /// What stands against it.
        reason: String,
    },
    /// A network of its own was asked for, and cannot be had here.
    #[error("no network for a sandbox: {reason}")]
    NoSandboxNetwork {
        /// What stands against it.
        reason: String,
    },
    /// A step of setting up the container failed.
    #[error("{step}: {source}")]
    Setup {
        /// What was being done, and on what.
        step: String,
        /// What the kernel said.
        source: io::Error,
    },
    /// The run was cancelled, and nothing of it is left.
    #[error("run {0} was cancelled")]
    Cancelled(RunId),
    /// A run with this id is under way.
    #[error("run {0} exists already")]
    Exists(RunId),
    /// No run with this id is under way, or its program has not been started yet.
    #[error("run {0} is not under way")]
    NotRunning(RunId),
    /// The helper process could not be started.
    #[error("start container helper {program}: {source}")]
    HelperStart {
        /// Its program.
        program: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The helper process has ended; its containers have ended with it.
    #[error("the container helper process has ended unexpectedly")]
    HelperGone,
    /// The helper answered something that cannot be understood.
    #[error("container helper: {0}")]
    Protocol(&'static str),
    /// The external runtime failed before the process started.
    #[error("{runtime}: {message}")]
    Runtime {
        /// Its program.
        runtime: PathBuf,
        /// What it said.
        message: String,
    },
    /// An input/output error in the daemon's own process.
    #[error("{doing}: {source}")]
    Io {
        /// What was being done.
        doing: &'static str,
        /// Why it failed.
        source: io::Error,
    },
}

fn unfound(has_emulator: bool) -> &'static str {
    if has_emulator {
        ", whose emulator is not in the container (binfmt_misc has it without the flag F)"
    } else {
        ""
    }
}
