//! Suites that every implementation of the store contracts must pass, and what tests of several crates stand on.
//!
//! ```text
//!   content::SUITE, layer::SUITE, image::SUITE    over a Fixture: run(SUITE, factory)
//!   snapshot::SUITE                               over a SnapshotFixture, likewise
//!   MemoryRecords                                 a strict fake of SnapshotRecords
//!   certificates::Certificate                     for servers and clients that speak TLS
//!   docker_registry::Registry                     Debian's docker-registry on loopback: the real thing
//!   registry::Fake                                a registry that answers as the test says: honest, or lying
//! ```
//!
//! A suite is a list of named checks; each gets a fresh store from the implementation's factory and panics, as a test does,
//! when a promise of the contract is not kept.
//!
//! This crate is not for: tests of one implementation's own promises (its files, its behaviour in a crash).
#![forbid(unsafe_code)]

pub mod certificates;
pub mod content;
pub mod docker_registry;
pub mod fixture;
pub mod image;
pub mod layer;
pub mod memory;
pub mod registry;
pub mod snapshot;

use std::panic::{self, AssertUnwindSafe};

pub use fixture::Fixture;
pub use memory::MemoryRecords;
pub use snapshot::SnapshotFixture;

/// One check of a suite.
pub type Check = fn(&Fixture);

/// Named checks, each of which is given a store of its own.
pub type Suite<'a, F> = [(&'a str, fn(&F))];

/// Runs every check of a suite, each on a store of its own. Panics naming those that failed.
pub fn run<F>(suite: &Suite<'_, F>, factory: impl Fn() -> F) {
    let failed = |(_, check): &&(&str, fn(&F))| {
        let fixture = factory();
        panic::catch_unwind(AssertUnwindSafe(|| check(&fixture))).is_err()
    };
    let failed: Vec<&str> = suite.iter().filter(failed).map(|(name, _)| *name).collect();
    assert!(failed.is_empty(), "promises not kept: {failed:#?}");
}
