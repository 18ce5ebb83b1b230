//! The ops of LLB, as the solver runs them.
//!
//! ```text
//!   source ── fetch ──► Tree        exec ── drafts, mounts, process ──► Trees
//!   file ── actions ──► Trees       merge, diff ── layers again ──► Tree
//! ```

mod exec;
mod file;
mod merge;
mod mounts;
mod source;

use std::sync::Arc;

use lapstrake_builder_cache::BuildCache;
use lapstrake_builder_executor::Executor;
use lapstrake_builder_files::ContentHasher;
use lapstrake_builder_llb::{Vertex, pb};
use lapstrake_builder_solver::Op;
use lapstrake_builder_source::Sources;
use lapstrake_layerstore_store::Stores;
use lapstrake_session::Sessions;
use tokio::sync::Semaphore;

use crate::{StepError, scope::EngineTypes};

/// What ops work with.
pub(crate) struct Workshop {
    pub(crate) stores: Stores,
    pub(crate) cache: Arc<BuildCache>,
    pub(crate) sources: Sources,
    pub(crate) sessions: Sessions,
    pub(crate) executor: Arc<dyn Executor>,
    pub(crate) content: ContentHasher,
    /// Permits for steps that use the machine: processes, copies, unpacking.
    pub(crate) slots: Arc<Semaphore>,
    /// Where sockets of ssh agents are made; private to the daemon.
    pub(crate) runtime_dir: std::path::PathBuf,
}

/// Makes the op of a vertex.
pub(crate) fn op(workshop: &Arc<Workshop>, vertex: &Vertex) -> Result<Arc<dyn Op<EngineTypes>>, StepError> {
    let workshop = Arc::clone(workshop);
    let platform = vertex.op.platform.clone();
    Ok(match vertex.op.op.as_ref().expect("a parsed vertex has an op") {
        pb::op::Op::Source(op) => Arc::new(source::SourceStep::new(workshop, op, platform)?),
        pb::op::Op::Exec(op) => Arc::new(exec::ExecStep::new(workshop, op.clone(), platform, vertex)?),
        pb::op::Op::File(op) => Arc::new(file::FileStep::new(workshop, op.clone(), vertex)),
        pb::op::Op::Merge(op) => Arc::new(merge::merge(workshop, op, vertex)),
        pb::op::Op::Diff(op) => Arc::new(merge::diff(workshop, op, vertex)),
        pb::op::Op::Build(_) => {
            return Err(StepError::Unsupported {
                what: "a build op within a graph (nested build)".to_owned(),
            });
        }
    })
}
