//! Real clients against the real `lapstrake` program.
//!
//! Each test starts a daemon of its own on a private socket and directory ([`Daemon`]), gives it a base image made from Debian's
//! `busybox-static`, and drives it with clients that know nothing of Lapstrake. The program under test is
//! `$LAPSTRAKE_BIN`, or else the one that cargo built beside the tests.

#![forbid(unsafe_code)]

mod agent;
mod archive;
mod base;
pub mod buildkit;
mod client;
mod compare;
mod daemon;
mod dockerd;
mod foreign;
mod git;
mod machine;
mod ordinary;
mod process;
mod pypi;
mod sshd;
mod tree;

pub use agent::SshAgent;
pub use archive::special_archive;
pub use base::{BASE_IMAGE, busybox_rootfs};
pub use client::{Docker, Output, collect, lapstrake, lapstrake_command};
pub use compare::hand_over;
pub use daemon::Daemon;
pub use dockerd::Dockerd;
pub use foreign::{Emulator, foreign_busybox_rootfs};
pub use git::{GitRequest, GitServer, Repositories, git, git_daemon};
pub use lapstrake_layerstore_conformance::{
    certificates::Certificate,
    docker_registry::{PASSWORD, Registry, USER},
};
pub use machine::Machine;
pub use ordinary::{OrdinaryUser, RootlessDaemon};
pub use process::{Process, free_address, wait_for_socket};
pub use pypi::python_environment;
pub use sshd::Sshd;
pub use tree::{Node, SavedImage, differences, saved_image};

/// Whether a program is on this machine. Tests that need one that is not there fail, saying which package has it.
pub fn require(program: &str, package: &str) {
    let found = std::env::var_os("PATH")
        .is_some_and(|path| std::env::split_paths(&path).any(|dir| dir.join(program).is_file()))
        || std::path::Path::new(program).is_file();
    assert!(found, "{program} is not installed; apt-get install {package}");
}
