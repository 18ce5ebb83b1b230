//! What a build is asked to be.

mod attests;
mod attrs;
mod frontend;

use std::collections::BTreeMap;

use lapstrake_builder_llb::{HostIp, ResolveMode, Ulimit, pb};
use lapstrake_layerstore_oci::Platform;

pub use attests::{PROVENANCE, SBOM, attests};
pub use frontend::{Channel, FrontendOrigin, FrontendRequest};

/// Everything that a client may say about a Dockerfile build. [`DockerfileOptions::new`] is `docker build .` with nothing said.
#[derive(Debug, Clone, PartialEq)]
pub struct DockerfileOptions {
    /// Which builder's language and history are meant.
    pub dialect: Dialect,
    /// Where the files are that `COPY` copies.
    pub context: ContextSource,
    /// A directory within a context that is not local.
    pub context_subdir: Option<String>,
    /// Where the Dockerfile is.
    pub dockerfile_source: DockerfileSource,
    /// The Dockerfile's path there.
    pub dockerfile_name: String,
    /// The stage to build; the last one if not said.
    pub target: Option<String>,
    /// The platforms to build for, in normal form; empty for the one we run on.
    pub platforms: Vec<Platform>,
    /// Whether the result is an index even for one platform; by default, if there are several.
    pub multi_platform: Option<bool>,
    /// The platform we run on.
    pub build_platform: Platform,
    /// Values for `ARG`s.
    pub build_args: BTreeMap<String, String>,
    /// Labels for the result.
    pub labels: BTreeMap<String, String>,
    /// Which stages not to take from the cache.
    pub no_cache: NoCache,
    /// Where to look for images.
    pub resolve_mode: ResolveMode,
    /// Network of `RUN`.
    pub network: pb::NetMode,
    /// Entries of `/etc/hosts` for `RUN`.
    pub extra_hosts: Vec<HostIp>,
    /// Bytes of `/dev/shm` for `RUN`; 0 for the default.
    pub shm_size: i64,
    /// Limits for `RUN`.
    pub ulimits: Vec<Ulimit>,
    /// Control group above those of `RUN`; empty for the default.
    pub cgroup_parent: String,
    /// Host name for `RUN`; empty for the default.
    pub hostname: String,
    /// Prefix of cache mounts' ids (`BUILDKIT_CACHE_MOUNT_NS`).
    pub cache_mount_namespace: String,
    /// Other contexts, by name (lower case, `name` or `name::platform`): `docker-image://…`, `local:…`, `git…`, `input:…`, ….
    pub named_contexts: BTreeMap<String, NamedContextSource>,
    /// Lint options (`BUILDKIT_DOCKERFILE_CHECK`), instead of the Dockerfile's own `# check=`.
    pub check: Option<String>,
    /// Caches to import; passed through.
    pub cache_imports: Vec<CacheImport>,
    /// The SBOM scanner and its parameters, if one is asked for; passed through.
    pub sbom: Option<Sbom>,
    /// `requestid` of a subrequest (`frontend.outline`, `frontend.targets`, …) instead of a build; passed through.
    pub subrequest: Option<String>,
    /// The session of local contexts that do not say another.
    pub session_id: Option<String>,
    /// Sessions of local contexts, by the context's local name.
    pub local_sessions: BTreeMap<String, String>,
    /// What else was said and does not matter to the plan (`vcs:…`, `attest:…`, `frontend.caps`, …); passed through.
    pub passed: BTreeMap<String, String>,
    /// Names of options that nobody here knows.
    pub unknown: Vec<String>,
    /// All of it as it was said, for another frontend; empty where it was not said in these words.
    pub attrs: BTreeMap<String, String>,
}

impl DockerfileOptions {
    /// `docker build` of the client's directory `context`, with a Dockerfile in its directory `dockerfile`, nothing else said.
    pub fn new(build_platform: Platform) -> DockerfileOptions {
        DockerfileOptions {
            dialect: Dialect::BuildKit,
            context: ContextSource::Local(LocalContext::named("context")),
            context_subdir: None,
            dockerfile_source: DockerfileSource::Local(LocalContext::named("dockerfile")),
            dockerfile_name: "Dockerfile".to_owned(),
            target: None,
            platforms: Vec::new(),
            multi_platform: None,
            build_platform: build_platform.normalized(),
            build_args: BTreeMap::new(),
            labels: BTreeMap::new(),
            no_cache: NoCache::None,
            resolve_mode: ResolveMode::Default,
            network: pb::NetMode::Unset,
            extra_hosts: Vec::new(),
            shm_size: 0,
            ulimits: Vec::new(),
            cgroup_parent: String::new(),
            hostname: String::new(),
            cache_mount_namespace: String::new(),
            named_contexts: BTreeMap::new(),
            check: None,
            cache_imports: Vec::new(),
            sbom: None,
            subrequest: None,
            session_id: None,
            local_sessions: BTreeMap::new(),
            passed: BTreeMap::new(),
            unknown: Vec::new(),
            attrs: BTreeMap::new(),
        }
    }

    /// Whether the result is an index even for one platform.
    pub fn is_multi_platform(&self) -> bool {
        self.multi_platform.unwrap_or(self.platforms.len() > 1)
    }

    /// The session in which a local context is.
    pub(crate) fn session_of(&self, local: &LocalContext) -> Option<String> {
        local
            .session_id
            .clone()
            .or_else(|| self.local_sessions.get(&local.name).cloned())
            .or_else(|| self.session_id.clone())
    }
}

/// Whose rules count where the two builders differ.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Dialect {
    /// BuildKit's.
    #[default]
    BuildKit,
    /// Those of Moby's classic builder: its history; every stage up to the target is built; what is wrong with an instruction is found
    /// out when its turn comes. Instructions that only BuildKit has are understood all the same.
    Classic,
}

/// A directory that the client offers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LocalContext {
    /// Under this name.
    pub name: String,
    /// In this session; see [`DockerfileOptions::session_id`].
    pub session_id: Option<String>,
    /// Which transfers to reuse; the name if not said.
    pub shared_key_hint: Option<String>,
    /// Tells it from other clients' directories when there is no session.
    pub unique_id: Option<String>,
}

impl LocalContext {
    /// Under a name, nothing else said.
    pub fn named(name: impl Into<String>) -> LocalContext {
        LocalContext { name: name.into(), session_id: None, shared_key_hint: None, unique_id: None }
    }
}

/// Where the main context is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ContextSource {
    /// With the client.
    Local(LocalContext),
    /// In a git repository: the reference as given, fragment and query included.
    Git {
        /// The reference.
        reference: String,
        /// Whether `.git` stays (`BUILDKIT_CONTEXT_KEEP_GIT_DIR`).
        keep_git_dir: Option<bool>,
    },
    /// Behind an URL: an archive, or a lone Dockerfile ([`crate::Need::HttpContextKind`]).
    Http {
        /// The URL.
        url: String,
    },
    /// A graph that the client gave (frontend input `context`).
    Input {
        /// Its key in [`crate::Facts::inputs`].
        name: String,
    },
}

/// Where the Dockerfile is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum DockerfileSource {
    /// With the client.
    Local(LocalContext),
    /// In the main context, which is not local.
    MainContext,
    /// In a graph that the client gave (frontend input `dockerfile`).
    Input {
        /// Its key in [`crate::Facts::inputs`].
        name: String,
    },
}

/// Where a named context is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NamedContextSource {
    /// The specifier, such as `docker-image://alpine` or `local:assets`.
    pub specifier: String,
    /// What transfers of a local context to reuse.
    pub shared_key: String,
    /// For `input:` contexts: what is known of the input, as JSON of an object of base64 strings.
    pub input_metadata: Option<String>,
}

/// What not to take from the cache.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum NoCache {
    /// Take all that is there.
    #[default]
    None,
    /// Take nothing.
    All,
    /// Take nothing for these stages, case ignored.
    Stages(Vec<String>),
}

impl NoCache {
    /// Whether a stage must be built anew.
    pub fn applies_to(&self, stage: &str) -> bool {
        match self {
            NoCache::None => false,
            NoCache::All => true,
            NoCache::Stages(stages) => stages.iter().any(|s| s.to_lowercase() == stage.to_lowercase()),
        }
    }
}

/// A cache to import.
#[derive(Debug, Clone, PartialEq, Eq, serde::Deserialize)]
pub struct CacheImport {
    /// `registry`, `local`, `inline`, ….
    #[serde(rename = "Type", alias = "type", default)]
    pub kind: String,
    /// Its options.
    #[serde(rename = "Attrs", alias = "attrs", default)]
    pub attrs: BTreeMap<String, String>,
}

/// An SBOM scanner.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sbom {
    /// Its image.
    pub generator: String,
    /// Its parameters.
    pub parameters: BTreeMap<String, String>,
}
