//! What an op is for the cache: BuildKit's keys, so that caches can be exchanged with it.
//!
//! The digest of an op's key is taken over JSON, as `solver/llbsolver/ops/*.go` writes it: Go's field order, names and `omitempty`.
//! What must not matter (proxy settings, addresses of extra hosts, ids of cache mounts) is left out there, and so it is here.

mod dialect;
mod exec;
mod file;
mod json;

use std::{borrow::Borrow, sync::Arc};

use lapstrake_layerstore_oci::{Digest, gojson};
use serde_json::Value;

use crate::{Passthrough, pb};
use dialect::Dialect;
pub use dialect::Versions;
pub use exec::exec;
use exec::exec_in;
pub use file::file;
use file::file_in;
use json::Object;

/// An op's key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OpKey {
    /// Everything but its inputs that decides what it makes.
    pub digest: Digest,
    /// How each input counts.
    pub deps: Vec<DepKey>,
}

/// The filter of workers by which an op says that its result is to be what Moby's classic builder makes of it: without the mount points of
/// its container, and without a layer where nothing was changed. No BuildKit has such results, so such ops have keys of their own.
pub const CLASSIC_WORKER: &str = "lapstrake.builder==classic";

/// Whether an op is for [`CLASSIC_WORKER`].
pub fn is_classic(op: &pb::Op) -> bool {
    op.constraints.as_ref().is_some_and(|constraints| constraints.filter.iter().any(|f| f == CLASSIC_WORKER))
}

impl OpKey {
    /// The key of the same op for [`CLASSIC_WORKER`].
    #[must_use]
    pub fn in_classic(self) -> Self {
        Self { digest: Digest::sha256_of(format!("{CLASSIC_WORKER} {}", self.digest)), ..self }
    }
}

/// An op's key as some versions of BuildKit make it. The content of inputs counts in all versions alike.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VersionKey {
    /// As [`OpKey::digest`], as text: some versions put there what they should have made a digest of.
    pub name: Arc<str>,
    /// As [`DepKey::selector`], for each input.
    pub selectors: Vec<Option<Digest>>,
    /// Who makes it so.
    pub versions: Versions,
}

/// What BuildKit's versions call an op: today's first, and every version in one of them. Empty for sources, and for what has no key.
pub fn in_versions(op: &pb::Op, inputs: usize) -> Vec<VersionKey> {
    let mut known: Vec<VersionKey> = Vec::new();
    for dialect in Dialect::ALL {
        let Some(key) = in_dialect(op, inputs, dialect) else { return Vec::new() };
        let same = |known: &&mut VersionKey| known.name == key.name && known.selectors == key.selectors;
        match known.iter_mut().find(same) {
            Some(known) => known.versions = known.versions.or(key.versions),
            None => known.push(key),
        }
    }
    known
}

/// What older versions of BuildKit call an op: caches that they made have it under these keys. Empty for what they agree on, for sources, and
/// for what has no key.
pub fn older(op: &pb::Op, inputs: usize) -> Vec<VersionKey> {
    in_versions(op, inputs).into_iter().skip(1).collect()
}

fn in_dialect(op: &pb::Op, inputs: usize, dialect: Dialect) -> Option<VersionKey> {
    if is_classic(op) {
        return None;
    }
    let of_trees = |json: Value| {
        let bytes = gojson::to_vec(&json).expect("a value serialises");
        let name = match dialect.digests_trees() {
            true => Digest::sha256_of(&bytes).as_str().into(),
            false => String::from_utf8_lossy(&bytes).into(),
        };
        (name, vec![None; inputs])
    };
    let of_key = |OpKey { digest, deps }: OpKey| -> (Arc<str>, Vec<Option<Digest>>) {
        (digest.as_str().into(), deps.into_iter().map(|dep| dep.selector).collect())
    };
    let (name, selectors) = match op.op.as_ref()? {
        pb::op::Op::Exec(exec) => of_key(exec_in(exec, op.platform.as_ref(), inputs, dialect).ok()?),
        pb::op::Op::File(file) => of_key(file_in(file, inputs, dialect)),
        pb::op::Op::Merge(merge) => of_trees(merge_json(merge, dialect)),
        pb::op::Op::Diff(diff) => of_trees(diff_json(diff, dialect)),
        pb::op::Op::Source(_) | pb::op::Op::Build(_) => return None,
    };
    Some(VersionKey { name, selectors, versions: dialect.into() })
}

/// How an input counts.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct DepKey {
    /// What part of it counts where it is known by definition.
    pub selector: Option<Digest>,
    /// What of its content may be looked at instead; `None` if content cannot stand for it. An empty list is all of it.
    pub content: Option<Vec<Selector>>,
}

/// A part of an input's content.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Selector {
    /// A path, or a pattern where `wildcard` is set.
    pub path: String,
    /// Whether `path` is a pattern, of which all matches count.
    pub wildcard: bool,
    /// Whether a symlink at the end of the path is followed.
    pub follow_links: bool,
    /// Only what these patterns match.
    pub include_patterns: Vec<String>,
    /// Not what these match.
    pub exclude_patterns: Vec<String>,
    /// Paths that must be there, whatever the patterns say.
    pub required_paths: Vec<String>,
}

/// The key of a merge op.
pub fn merge(op: &pb::MergeOp, inputs: usize) -> OpKey {
    tree_key(&merge_json(op, Dialect::TODAY), inputs)
}

fn merge_json(op: &pb::MergeOp, dialect: Dialect) -> Value {
    let list: Vec<Value> = op.inputs.iter().map(|input| json::index(input.input, dialect)).collect();
    let mut merge = Object::new();
    if !list.is_empty() {
        merge.always("inputs", list);
    }
    tree_json("buildkit.merge.v0", "Merge", merge)
}

/// The key of a build op: it counts by what it reads the graph from, and by the graph it may have in itself.
pub fn build(op: &pb::BuildOp, inputs: usize) -> OpKey {
    let mut build = Object::new();
    if op.builder != 0 {
        build.always("builder", op.builder);
    }
    if !op.inputs.is_empty() {
        let named = op.inputs.iter();
        let list = named.map(|(name, input)| (name.clone(), json::index(input.input, Dialect::TODAY)));
        build.always("inputs", Value::Object(list.collect()));
    }
    if let Some(definition) = &op.def {
        // Nothing is exchanged with BuildKit for such an op: the graph's own bytes do.
        build.always("def", Digest::sha256_of(prost::Message::encode_to_vec(definition)).as_str());
    }
    if !op.attrs.is_empty() {
        let attrs = op.attrs.iter().map(|(key, value)| (key.clone(), Value::from(value.as_str())));
        build.always("attrs", Value::Object(attrs.collect()));
    }
    tree_key(&tree_json("buildkit.build.v0", "Exec", build), inputs)
}

/// The key of a passthrough op.
pub fn passthrough(op: &Passthrough, inputs: usize) -> OpKey {
    let mut passthrough = Object::new();
    passthrough.text("id", &op.id);
    passthrough.always("outputs", op.outputs.clone());
    tree_key(&tree_json("buildkit.passthrough.v0", "Passthrough", passthrough), inputs)
}

/// The key of a diff op.
pub fn diff(op: &pb::DiffOp, inputs: usize) -> OpKey {
    tree_key(&diff_json(op, Dialect::TODAY), inputs)
}

fn diff_json(op: &pb::DiffOp, dialect: Dialect) -> Value {
    let mut diff = Object::new();
    if let Some(lower) = &op.lower {
        diff.always("lower", json::index(lower.input, dialect));
    }
    if let Some(upper) = &op.upper {
        diff.always("upper", json::index(upper.input, dialect));
    }
    tree_json("buildkit.diff.v0", "Diff", diff)
}

fn tree_json(kind: &str, field: &'static str, op: Object) -> Value {
    let mut key = Object::new();
    key.always("Type", kind);
    key.always(field, Value::from(op));
    key.into()
}

fn tree_key(json: &Value, inputs: usize) -> OpKey {
    OpKey { digest: digest_of(json), deps: vec![DepKey::default(); inputs] }
}

fn digest_of(value: &Value) -> Digest {
    Digest::sha256_of(gojson::to_vec(value).expect("a value serialises"))
}

/// What counts of an input by definition; `None` where nothing of it was selected.
fn selected<P: Borrow<str>>(paths: &[P]) -> Option<Digest> {
    (!paths.is_empty()).then(|| Digest::sha256_of(paths.join("\0").as_bytes()))
}

/// Paths without those that lie below another, sorted.
fn without_nested(paths: &[String]) -> Vec<String> {
    if paths.len() <= 1 {
        return paths.to_vec();
    }
    let below = |path: &str, other: &str| {
        let slash = if other.ends_with('/') { other.to_owned() } else { format!("{other}/") };
        path != other && path.starts_with(&slash)
    };
    let mut kept: Vec<String> =
        paths.iter().filter(|path| !paths.iter().any(|other| below(path, other))).cloned().collect();
    kept.sort_unstable();
    kept.dedup();
    kept
}

#[cfg(test)]
mod tests;
