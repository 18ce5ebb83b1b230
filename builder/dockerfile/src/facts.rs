//! What a plan depends on besides its options, and how it asks for it.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use lapstrake_builder_llb::{Definition, ResolveMode};
use lapstrake_layerstore_oci::{Digest, History, ImageId, Platform, Reference};

/// Everything that is known so far. Start with [`Facts::new`], add what [`crate::plan()`] needs, and plan again.
#[derive(Debug, Clone, Default)]
pub struct Facts {
    /// The Dockerfile's bytes.
    pub dockerfile: Arc<[u8]>,
    /// The ignore file of the main context: `<Dockerfile>.dockerignore` if it exists, else `.dockerignore`.
    pub dockerignore: Option<IgnoreFile>,
    /// Images, by what was asked.
    pub images: HashMap<ImageQuery, ImageFact>,
    /// Platforms besides the build platform whose processes can be run, as far as images for them were found.
    pub platforms: Vec<Platform>,
    /// The `.dockerignore` of each local named context; `None` if it has none.
    pub context_ignores: BTreeMap<String, Option<Arc<[u8]>>>,
    /// Whether the URL of the main context is an archive (else it is the Dockerfile).
    pub http_context_is_archive: Option<bool>,
    /// Seconds since 1970, by the value of `SOURCE_DATE_EPOCH` that names what has this time; `None` where it has none.
    pub epochs: BTreeMap<String, Option<i64>>,
    /// Graphs that the client gave by name (`input:NAME` contexts).
    pub inputs: BTreeMap<String, Definition>,
    /// Images that cannot be had, and why. (To the classic dialect that is told when their turn comes; to BuildKit's it is the end.)
    pub missing: HashMap<ImageQuery, String>,
    /// Hashes of what is copied, as the classic history has them, or why it cannot be copied.
    pub copied: BTreeMap<Place, Result<String, String>>,
    /// Stages, by number, whose first instructions are taken from an image (classic `--cache-from`).
    pub restored: BTreeMap<usize, Restored>,
}

/// An instruction's place: its stage's number in the Dockerfile, and how many come before it in the stage, triggers included.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Place {
    /// The stage.
    pub stage: usize,
    /// Its place there.
    pub position: usize,
}

/// What is to be hashed for the history of a `COPY` or `ADD`.
#[derive(Debug, Clone, PartialEq)]
pub struct CopyQuery {
    /// Of which instruction; goes to [`Facts::copied`] under this.
    pub place: Place,
    /// `COPY` or `ADD`.
    pub keyword: &'static str,
    /// What is copied, in order.
    pub sources: Vec<CopySource>,
    /// Whether the destination is a directory by its form.
    pub to_directory: bool,
}

/// One source of a `COPY` or `ADD`.
#[derive(Debug, Clone, PartialEq)]
pub enum CopySource {
    /// Files of the main context.
    Context {
        /// The context's graph.
        definition: Arc<Definition>,
        /// Path or pattern, as written.
        path: String,
    },
    /// Files of a stage or an image.
    Tree {
        /// The graph of which they are.
        definition: Arc<Definition>,
        /// Path or pattern, as written.
        path: String,
    },
    /// A downloaded file.
    Download {
        /// The graph that gets it.
        definition: Arc<Definition>,
        /// Its name there.
        path: String,
    },
    /// Anything else, by a text that stands for it.
    Said(String),
}

/// A prefix of a stage that an image has.
#[derive(Debug, Clone, PartialEq)]
pub struct Restored {
    /// How many of the stage's own instructions with an entry in the history it covers.
    pub count: usize,
    /// The image.
    pub image: Reference,
    /// How many of its layers are the result, if the instructions may change files.
    pub layers: Option<u32>,
    /// The image's entries for them.
    pub history: Vec<History>,
}

impl Facts {
    /// Nothing but a Dockerfile.
    pub fn new(dockerfile: impl Into<Arc<[u8]>>) -> Facts {
        Facts { dockerfile: dockerfile.into(), ..Facts::default() }
    }

    /// The same with an image's fact.
    #[must_use]
    pub fn with_image(mut self, query: ImageQuery, fact: ImageFact) -> Facts {
        self.images.insert(query, fact);
        self
    }
}

/// An ignore file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IgnoreFile {
    /// Its name, for messages.
    pub name: String,
    /// Its bytes.
    pub data: Arc<[u8]>,
}

/// Which image.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ImageQuery {
    /// Where it is: a registry, or a layout on the client.
    pub origin: ImageOrigin,
    /// Its name; always with tag or digest.
    pub reference: Reference,
    /// For which platform.
    pub platform: Platform,
}

/// Where an image is looked for.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum ImageOrigin {
    /// A registry, or the local image store.
    Registry {
        /// Pull always: ask the registry even if the image is there.
        force_pull: bool,
        /// Ask the registry only if the image is not there.
        prefer_local: bool,
    },
    /// An OCI layout that the client offers.
    OciLayout {
        /// The client's name for it.
        store_id: String,
        /// The session it is in.
        session_id: String,
    },
}

impl ImageOrigin {
    /// A registry, asked as `mode` says.
    pub fn registry(mode: ResolveMode) -> ImageOrigin {
        ImageOrigin::Registry {
            force_pull: mode == ResolveMode::ForcePull,
            prefer_local: mode == ResolveMode::PreferLocal,
        }
    }

    /// How a registry is asked; the default for layouts.
    pub fn resolve_mode(&self) -> ResolveMode {
        match self {
            ImageOrigin::Registry { force_pull: true, .. } => ResolveMode::ForcePull,
            ImageOrigin::Registry { prefer_local: true, .. } => ResolveMode::PreferLocal,
            _ => ResolveMode::Default,
        }
    }
}

/// What an image is.
#[derive(Debug, Clone, PartialEq)]
pub struct ImageFact {
    /// What it was found as: usually what was asked, but a source policy may have rewritten it.
    pub reference: Reference,
    /// What the name stands for, index or manifest; `None` for an image that exists only in the local store.
    pub digest: Option<Digest>,
    /// Its config document, for the platform that was asked.
    pub config: Arc<[u8]>,
    /// Its id if it is in the local store.
    pub image_id: Option<ImageId>,
}

/// Something that must be found out before the plan can go on.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
#[non_exhaustive]
#[allow(clippy::large_enum_variant, reason = "there are as many as images in a Dockerfile")]
pub enum Need {
    /// An image's config and digest; goes to [`Facts::images`].
    ImageConfig {
        /// Which.
        query: ImageQuery,
        /// What progress is to call it: `[internal] load metadata for …`.
        progress_name: String,
        /// The name as the Dockerfile has it, for errors.
        named: String,
    },
    /// The `.dockerignore` of a local named context; goes to [`Facts::context_ignores`] under `name`.
    ContextIgnore {
        /// The named context.
        name: String,
        /// The graph that reads it: solve, and read `.dockerignore` from the result.
        definition: Box<NeedDefinition>,
    },
    /// Whether the main context's URL is an archive; goes to [`Facts::http_context_is_archive`].
    HttpContextKind {
        /// The URL.
        url: String,
    },
    /// The time of a source; goes to [`Facts::epochs`] under `value`.
    Epoch {
        /// The value of `SOURCE_DATE_EPOCH`.
        value: String,
        /// The graph that gets the source.
        definition: Box<NeedDefinition>,
        /// Where its time is.
        source: EpochSource,
    },
}

/// Where the time of a source is, once it is had.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum EpochSource {
    /// A commit's tree: its root is as old as the commit.
    Commit,
    /// A download: as old as the server says, and else as the youngest file in it if it is an archive.
    Download {
        /// Its name.
        file: String,
    },
}

/// A graph that answers a [`Need`], compared by its bytes.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct NeedDefinition {
    /// A serialised `pb.Definition`.
    pub bytes: Vec<u8>,
}

impl NeedDefinition {
    pub(crate) fn new(definition: &Definition) -> NeedDefinition {
        NeedDefinition { bytes: definition.encode() }
    }

    /// The graph.
    pub fn definition(&self) -> Definition {
        Definition::decode(&self.bytes).expect("made by encoding a definition")
    }
}
