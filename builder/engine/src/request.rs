//! What a build is asked to do, and what it answers: the one form that every door parses into.

use std::{collections::BTreeMap, path::PathBuf, sync::Arc};

use lapstrake_builder_dockerfile::DockerfileOptions;
use lapstrake_builder_executor::Resources;
use lapstrake_builder_exporter::{Compatibility, Output};
use lapstrake_builder_llb::Definition;
use lapstrake_layerstore_registry::CredentialSource;
use lapstrake_session::SessionId;

use crate::{CacheSource, CacheTarget, Grants, KeepFailed, ReceivedContext, SourcePolicy};

/// One build. Parsed once, at the door; everything in it is typed.
#[derive(Clone)]
pub struct BuildRequest {
    /// By which the client may cancel the build; random when the client gave none.
    pub id: BuildId,
    /// What to build.
    pub input: Input,
    /// The client's session, which answers for local directories, secrets, ssh agents and credentials.
    pub session: Option<SessionId>,
    /// What to leave behind; nothing but cache when there are none.
    pub outputs: Vec<Output>,
    /// Caches to use besides our own.
    pub cache_from: Vec<CacheSource>,
    /// Where to leave the cache of the build.
    pub cache_to: Vec<CacheTarget>,
    /// Whether the image carries its own cache records (`BUILDKIT_INLINE_CACHE=1`).
    pub inline_cache: bool,
    /// Registry credentials that came with the request; a session's are asked first.
    pub credentials: Arc<dyn CredentialSource>,
    /// Whether what a failed `RUN` leaves is kept as an image.
    pub keep_failed: KeepFailed,
    /// What its steps may do beyond a sandbox, as far as the client has a say.
    pub grants: Grants,
    /// Limits on the processes of the build.
    pub resources: Resources,
    /// Which sources the build may have.
    pub source_policy: SourcePolicy,
    /// As which version of BuildKit results are made.
    pub compatibility: Compatibility,
    /// Whether the history has it.
    pub is_recorded: bool,
    /// Whether the session is asked for further outputs when all is made.
    pub asks_session: bool,
}

/// Names a build, for cancelling and history.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct BuildId(pub String);

/// What to build.
#[derive(Debug, Clone)]
pub enum Input {
    /// A Dockerfile.
    Dockerfile {
        /// Everything that the client said about it.
        options: Box<DockerfileOptions>,
        /// Where its files are.
        context: ContextInput,
        /// Further directories of this machine, by the names under which the options speak of them (`local:NAME`, `dockerfilekey`). For
        /// `lapstrake build` alone: what a client of the daemon names is in its session.
        directories: BTreeMap<String, PathBuf>,
    },
    /// A graph, as it is.
    Definition {
        /// The graph.
        definition: Definition,
        /// What else the client asks: what is to be attested (`attest:…`). For the history, too.
        options: BTreeMap<String, String>,
    },
    /// What a frontend makes of it.
    Frontend(FrontendRequest),
    /// The client is the frontend (buildx, compose, bake): it calls the build's [`Bridge`](crate::Bridge), and says with `Return` what came of it.
    Client {
        /// What it would have asked of a frontend, for the history alone.
        options: BTreeMap<String, String>,
        /// Graphs that it gave itself, by name.
        inputs: BTreeMap<String, Definition>,
    },
}

/// A question to a frontend.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct FrontendRequest {
    /// Its name: `dockerfile.v0`, or `gateway.v0` for the image that option `source` names.
    pub frontend: String,
    /// As the client sent them: `filename`, `build-arg:NAME`, `context:NAME`, ….
    pub options: BTreeMap<String, String>,
    /// Graphs that the client gave, by name.
    pub inputs: BTreeMap<String, Definition>,
}

/// Where the files of a Dockerfile build come from.
#[derive(Debug, Clone)]
pub enum ContextInput {
    /// The client sends directories named `context` and `dockerfile` through its session.
    Session,
    /// A tree that came with the request and is in the store already.
    Received(ReceivedContext),
    /// A directory of this machine (`lapstrake build`), with a second one for the Dockerfile where that is elsewhere.
    Directory {
        /// The context.
        context: PathBuf,
        /// Where the Dockerfile and its ignore file are.
        dockerfile: PathBuf,
    },
    /// Where the options say: a git repository, or an URL of a tar archive or a Dockerfile alone.
    Remote,
}
