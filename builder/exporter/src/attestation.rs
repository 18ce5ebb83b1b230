//! What is said about a result and goes with it: provenance, a bill of materials, what a frontend adds.

use std::{collections::BTreeMap, fmt::Debug, path::PathBuf, sync::Arc};

use bytes::Bytes;
use lapstrake_layerstore_oci::Digest;
use lapstrake_layerstore_store::{Stores, Tree};

use crate::ExportError;

/// Metadata of an attestation: why it was made (`sbom`, `provenance`).
pub const REASON: &str = "reason";
/// Metadata of an attestation: the name of the scan, without its suffix, that is about the result itself.
pub const SBOM_CORE: &str = "sbom-core";
/// Metadata of an attestation: `true` when it makes no sense outside of an image.
pub const INLINE_ONLY: &str = "inline-only";

/// A statement about a result (in-toto v1), or a directory of such.
#[derive(Debug, Clone)]
pub struct Attestation {
    /// One, or a directory of them.
    pub kind: AttestationKind,
    /// What makers and exporters tell each other ([`REASON`], [`SBOM_CORE`], [`INLINE_ONLY`]).
    pub metadata: BTreeMap<String, Vec<u8>>,
    /// Its name as a file, such as `provenance.json`; in a tree, where it is.
    pub path: PathBuf,
    /// What it says.
    pub content: AttestationContent,
    /// The type of what it says, such as `https://slsa.dev/provenance/v1`; of a bundle, that of all in it, or empty.
    pub predicate_type: String,
    /// What it is about; when empty, the result.
    pub subjects: Vec<Subject>,
}

/// One statement, or several.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AttestationKind {
    /// A predicate, for one statement.
    InToto,
    /// A directory of whole statements.
    Bundle,
}

/// Where a statement's predicate (or a bundle) is.
#[derive(Debug, Clone)]
pub enum AttestationContent {
    /// Said by this program, when the result's layers are made.
    Own(Arc<dyn Predicate>),
    /// Here: taken out of a bundle. JSON.
    Bytes(Bytes),
    /// In a tree: made by a frontend or a scanner.
    Tree(Tree),
}

/// What this program says of a result.
pub trait Predicate: Send + Sync + Debug {
    /// It says it, as JSON. Asked once for each output, after its layers are made, so that it can tell of their blobs. Blocks.
    fn json(&self, stores: &Stores) -> Result<Vec<u8>, ExportError>;
}

/// What a statement is about.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Subject {
    /// Whether it is the result, or something else.
    pub kind: SubjectKind,
    /// Its name; may be empty.
    pub name: String,
    /// Digests of something else.
    pub digests: Vec<Digest>,
}

/// Whether a subject is the result.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SubjectKind {
    /// It is: under each of its names, and the subject's own.
    Result,
    /// It is something else.
    Other,
}

impl Attestation {
    /// Whether it makes no sense outside of an image.
    pub fn is_inline_only(&self) -> bool {
        self.metadata.get(INLINE_ONLY).is_some_and(|value| value == b"true")
    }
}
