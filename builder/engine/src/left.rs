//! What steps that fail leave to be looked at, and what frontends are told of it.
//!
//! ```text
//!   op fails ─► StepError::Left: trees ─► Bridge gives them names ─► EngineError::Shown ─► errdefs.Solve ─► containers of these names
//! ```

use std::collections::BTreeMap;

use lapstrake_layerstore_store::Tree;

/// The trees of a step that failed. They are held as long as somebody has the error.
#[derive(Debug, Default)]
pub struct Left {
    /// What it began with: of a process by its mounts, of file actions by their op's inputs, otherwise the one that could not be read.
    pub(crate) inputs: Vec<Option<Tree>>,
    /// What was there at its end: of a process by its mounts, of file actions by their number.
    pub(crate) ends: Vec<Option<Tree>>,
    /// What of it failed, where that is not all of it.
    pub(crate) part: Option<FailedPart>,
}

/// What of a step failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum FailedPart {
    /// The file action of this number.
    Action(usize),
    /// Finding out what the input of this number is to the cache.
    Content(usize),
}

/// A step that failed, as a frontend is told of it: BuildKit's `errdefs.Solve`.
#[derive(Debug)]
pub struct ShownStep {
    /// The op.
    pub(crate) op: serde_json::Value,
    /// What its author says of it.
    pub(crate) description: BTreeMap<String, String>,
    /// Names of its inputs, which containers may be made of; empty where there is none.
    pub(crate) inputs: Vec<String>,
    /// Names of what it left.
    pub(crate) ends: Vec<String>,
    /// What of it failed, where that is not all of it.
    pub(crate) part: Option<FailedPart>,
}
