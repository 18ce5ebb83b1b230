//! What must hold for any input, however odd: one function for each thing that reads what strangers wrote.
//!
//! ```text
//!                    ┌─ targets/ (libFuzzer, a workspace of its own): bytes that a fuzzer makes up
//!  fn(&[u8]) ◄───────┤
//!  panics if not so  └─ tests/replay.rs (stable toolchain, every test run): seeds, regressions, and some mutations of them
//! ```
//!
//! A check returns for input that is refused, and panics where a promise is broken: a panic or a hang of ours is one, too. What a fuzzer found
//! goes to `regressions/<target>/`, with a name that says what it was.
//!
//! Not for: how fast anything is, or what anything means; that is what the crates' own tests are for.

#![forbid(unsafe_code)]

mod archive;
mod documents;
mod language;
mod lowering;
mod names;
mod patterns;
mod words;

use std::path::{Path, PathBuf};

/// A check, and where its inputs are.
#[derive(Clone, Copy)]
pub struct Target {
    /// Its name: of its folders, and of the fuzzer's program.
    pub name: &'static str,
    /// The check. Panics if something does not hold.
    pub check: fn(&[u8]),
}

/// All checks.
pub const TARGETS: &[Target] = &[
    Target { name: "archive", check: archive::archive },
    Target { name: "cache_document", check: documents::cache_document },
    Target { name: "dockerfile", check: language::dockerfile },
    Target { name: "ignore_file", check: patterns::ignore_file },
    Target { name: "image_document", check: documents::image_document },
    Target { name: "layer", check: archive::layer },
    Target { name: "llb", check: documents::llb },
    Target { name: "lowering", check: lowering::lowering },
    Target { name: "pattern", check: patterns::pattern },
    Target { name: "reference", check: names::reference },
    Target { name: "word", check: words::word },
];

/// The check of this name.
///
/// # Panics
/// When there is none.
pub fn target(name: &str) -> Target {
    let found = TARGETS.iter().find(|target| target.name == name);
    *found.unwrap_or_else(|| panic!("there is no target {name}"))
}

impl Target {
    /// Where it starts from: small inputs that get far.
    pub fn seeds(&self) -> PathBuf {
        folder("seeds").join(self.name)
    }

    /// What once failed.
    pub fn regressions(&self) -> PathBuf {
        folder("regressions").join(self.name)
    }
}

impl std::fmt::Debug for Target {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name)
    }
}

fn folder(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(name)
}
