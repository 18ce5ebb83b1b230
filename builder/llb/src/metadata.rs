//! What is known of a vertex besides its op: it does not take part in the vertex's digest.

use std::{
    borrow::Cow,
    collections::{BTreeMap, BTreeSet},
};

use crate::pb;

/// The description key that carries a vertex's name.
pub(crate) const CUSTOM_NAME: &str = "llb.customname";

/// How a vertex is shown and cached.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Metadata {
    /// Run it even if its result is cached.
    pub ignore_cache: bool,
    /// Free text by key; `llb.customname` is the vertex's name.
    pub description: BTreeMap<String, String>,
    /// Whether its result goes into exported caches; `None` leaves that to the build.
    pub export_cache: Option<bool>,
    /// The features that the solver must have (see [`crate::caps`]).
    pub caps: BTreeSet<Cow<'static, str>>,
    /// The group that it is shown in.
    pub progress_group: Option<ProgressGroup>,
}

/// Vertices that are shown as one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ProgressGroup {
    /// Same for all vertices of the group.
    pub id: String,
    /// What the group is called.
    pub name: String,
    /// Whether the group is shown only if another, not weak, vertex is in it.
    pub weak: bool,
}

impl Metadata {
    /// The name given by the author of the graph.
    pub fn custom_name(&self) -> Option<&str> {
        self.description.get(CUSTOM_NAME).map(String::as_str)
    }

    /// Names the vertex.
    pub fn set_custom_name(&mut self, name: impl Into<String>) {
        self.description.insert(CUSTOM_NAME.to_owned(), name.into());
    }

    /// Requires a feature.
    pub fn add_cap(&mut self, cap: &'static str) {
        self.caps.insert(Cow::Borrowed(cap));
    }

    /// Adds what `other` says; where both say something, `other` wins.
    pub fn merge(&mut self, other: &Metadata) {
        self.ignore_cache |= other.ignore_cache;
        self.description.extend(other.description.iter().map(|(k, v)| (k.clone(), v.clone())));
        self.export_cache = other.export_cache.or(self.export_cache);
        self.caps.extend(other.caps.iter().cloned());
        if other.progress_group.is_some() {
            self.progress_group = other.progress_group.clone();
        }
    }

    /// Reads the wire form. A capability listed as `false` is not required.
    pub fn from_proto(proto: pb::OpMetadata) -> Metadata {
        Metadata {
            ignore_cache: proto.ignore_cache,
            description: proto.description,
            export_cache: proto.export_cache.map(|e| e.value),
            caps: proto.caps.into_iter().filter(|(_, on)| *on).map(|(cap, _)| Cow::Owned(cap)).collect(),
            progress_group: proto.progress_group.map(|g| ProgressGroup {
                id: g.id,
                name: g.name,
                weak: g.weak,
            }),
        }
    }

    /// The wire form.
    pub fn to_proto(&self) -> pb::OpMetadata {
        pb::OpMetadata {
            ignore_cache: self.ignore_cache,
            description: self.description.clone(),
            export_cache: self.export_cache.map(|value| pb::ExportCache { value }),
            caps: self.caps.iter().map(|cap| (cap.to_string(), true)).collect(),
            progress_group: self.progress_group.as_ref().map(|g| pb::ProgressGroup {
                id: g.id.clone(),
                name: g.name.clone(),
                weak: g.weak,
            }),
        }
    }
}
