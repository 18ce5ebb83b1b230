//! What a build offers to the steps that it waits for.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
};

use lapstrake_builder_progress::Progress;
use lapstrake_builder_solver::Types;
use lapstrake_builder_source::{BuildMark, LocalProvider, Material};
use lapstrake_layerstore_oci::Digest;
use lapstrake_layerstore_registry::CredentialSource;
use lapstrake_layerstore_store::Tree;
use lapstrake_session::{SessionId, Sessions};

use crate::{
    Grants, Resources, SourcePolicy, StepError, attest::Trail, history::Knowledge, kept::FailedSteps,
    ops::CacheId,
};

/// One build, as its steps see it. A step that several builds share may ask any of them.
#[derive(Clone)]
pub(crate) struct BuildScope {
    /// The build itself, to sources.
    pub(crate) mark: BuildMark,
    /// The client's session.
    pub(crate) session: Option<SessionId>,
    /// Where to see whether it is still there.
    pub(crate) live: Sessions,
    /// Credentials for registries.
    pub(crate) credentials: Arc<dyn CredentialSource>,
    /// Directories that are not with a session, by the unique id that the graph names them with.
    pub(crate) locals: HashMap<String, LocalProvider>,
    /// Whether the context came as an archive with the request.
    pub(crate) received: bool,
    /// Whether the modes in the archive that the context came as were permissions alone.
    pub(crate) bare_modes: bool,
    /// What its steps may do beyond a sandbox.
    pub(crate) grants: Grants,
    /// Limits on processes.
    pub(crate) resources: Resources,
    /// Which sources its graphs may have.
    pub(crate) policy: SourcePolicy,
    /// Where further vertices are told: graphs that a step finds, and what a policy wants to know.
    pub(crate) progress: Progress,
    /// The cache mounts that a step without cache has taken anew: once a build.
    pub(crate) renewed: Arc<tokio::sync::Mutex<HashSet<CacheId>>>,
    /// The build ops whose graph this is part of, the outermost first.
    pub(crate) inside: Vec<Digest>,
    /// What its frontend was asked and used.
    pub(crate) trail: Arc<Trail>,
    /// Whether its frontend may look into steps that fail.
    pub(crate) shows_failed: bool,
    /// Where steps that fail leave what they wrote; `None` when nothing of it is kept.
    pub(crate) failed: Option<Arc<FailedSteps>>,
    /// What steps need to say why they run; `None` where nothing is recorded.
    pub(crate) known: Option<Arc<Knowledge>>,
}

/// The types that the solver works with.
pub(crate) struct EngineTypes;

impl Types for EngineTypes {
    type Value = Tree;
    type Scope = Arc<BuildScope>;
    type Error = StepError;
    type Told = Material;

    fn alive(scope: &Arc<BuildScope>) -> bool {
        scope.session.as_ref().is_none_or(|session| scope.live.is_live(session))
    }
}

/// The sessions of the builds that wait, longest waiting first.
pub(crate) fn sessions(scopes: &[Arc<BuildScope>]) -> Vec<SessionId> {
    scopes.iter().filter_map(|scope| scope.session.clone()).collect()
}
