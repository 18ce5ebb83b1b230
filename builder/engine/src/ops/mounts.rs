//! The mounts of a `RUN`: drafts, read-only inputs, cache directories, secrets, sockets.

use std::{collections::BTreeMap, sync::Arc};

use lapstrake_builder_cache::{CacheMount, Sharing};
use lapstrake_builder_executor::{MountKind, MountSpec};
use lapstrake_builder_llb::{join_path, pb};
use lapstrake_builder_solver::OpContext;
use lapstrake_layerstore_store::{Draft, SnapshotMount, Tree};
use lapstrake_session::{Secret, SessionId, SshAgent, SshSocket};
use tokio_util::sync::CancellationToken;

use super::Workshop;
use crate::{
    StepError,
    scope::{BuildScope, EngineTypes, sessions},
};

/// The root of the process's file system.
pub(crate) struct Root {
    pub(crate) mount: SnapshotMount,
    pub(crate) read_only: bool,
}

/// Who wants a process: whose secrets and agents it may have, and whether it is still wanted.
pub(crate) enum Wanted<'a> {
    /// A step of a graph, for the builds that wait for it. They are looked at only where something of theirs is asked for.
    Step(&'a OpContext<EngineTypes>),
    /// A frontend of one build.
    Frontend {
        /// The build.
        scope: &'a BuildScope,
        /// Cancelled when nobody wants it any more.
        cancel: &'a CancellationToken,
    },
}

impl Wanted<'_> {
    fn cancel(&self) -> &CancellationToken {
        match self {
            Self::Step(cx) => &cx.cancel,
            Self::Frontend { cancel, .. } => cancel,
        }
    }

    fn sessions(&self) -> Vec<SessionId> {
        match self {
            Self::Step(cx) => sessions(&cx.scopes()),
            Self::Frontend { scope, .. } => scope.session.iter().cloned().collect(),
        }
    }
}

/// Everything that must live as long as the process does. Dropping it discards drafts that were not taken.
pub(crate) struct MountPlan {
    root: Option<Root>,
    mounts: Vec<MountSpec>,
    /// The snapshots that are mounted, by the mount's number.
    snapshots: Vec<Option<SnapshotMount>>,
    secret_env: Vec<String>,
    // By the mount's number: drafts whose content is an output.
    outputs: Vec<(usize, Draft)>,
    // By the mount's number: never used again, and gone afterwards, unless the step fails.
    scratch: Vec<(usize, Draft)>,
    held: Vec<Tree>,
    // By id and what it begins as: a step that names one twice has one.
    caches: BTreeMap<CacheId, CacheMount>,
    agents: Vec<(SshAgent, tempfile::TempDir)>,
}

impl MountPlan {
    /// Prepares all mounts of an op. Waits for locked cache mounts; dropping the future gives everything back.
    pub(crate) async fn prepare(
        workshop: &Arc<Workshop>,
        op: &pb::ExecOp,
        inputs: Vec<Tree>,
        cx: &Wanted<'_>,
    ) -> Result<Self, StepError> {
        let mut plan = Self {
            root: None,
            mounts: Vec::new(),
            snapshots: vec![None; op.mounts.len()],
            secret_env: Vec::new(),
            outputs: Vec::new(),
            scratch: Vec::new(),
            held: Vec::new(),
            caches: BTreeMap::new(),
            agents: Vec::new(),
        };
        plan.take_caches(workshop, op, &inputs, cx).await?;
        for (number, mount) in op.mounts.iter().enumerate() {
            let input = match usize::try_from(mount.input) {
                Ok(index) => inputs.get(index).cloned().ok_or_else(|| StepError::Invalid {
                    what: format!("mount {} is of input {index}, which is not there", mount.dest),
                })?,
                Err(_) => Tree::empty(),
            };
            let kind = match mount.mount_type() {
                pb::MountType::Bind => Some(plan.bind(workshop, number, mount, input).await?),
                pb::MountType::Cache => Some(plan.cache(mount, &input)?),
                pb::MountType::Tmpfs => Some(MountKind::Tmpfs { size: tmpfs_size(mount) }),
                pb::MountType::Secret => secret(workshop, mount, cx).await?,
                pb::MountType::Ssh => plan.ssh(workshop, mount, cx).await?,
            };
            let Some(kind) = kind else { continue };
            if let MountKind::Snapshot { mount, .. } = &kind {
                plan.snapshots[number] = Some(mount.clone());
            }
            if mount.dest == "/" {
                plan.set_root(kind)?;
            } else {
                // Below the working directory, unless it says where.
                let cwd = op.meta.as_ref().map_or("/", |meta| meta.cwd.as_str());
                let target = match mount.dest.starts_with('/') {
                    true => mount.dest.clone(),
                    false => join_path(&["/", cwd, &mount.dest]),
                };
                plan.mounts.push(MountSpec { target, kind });
            }
        }
        for env in &op.secretenv {
            if let Some(secret) = find_secret(workshop, &env.id, env.optional, cx).await? {
                let value = String::from_utf8(secret.into_bytes()).map_err(|_| StepError::Invalid {
                    what: format!("secret {} for variable {} is not UTF-8", env.id, env.name),
                })?;
                plan.secret_env.push(format!("{}={value}", env.name));
            }
        }
        // A directory is mounted before what is mounted in it.
        plan.mounts.sort_by_key(|mount| mount.target.split('/').filter(|part| !part.is_empty()).count());
        Ok(plan)
    }

    fn set_root(&mut self, kind: MountKind) -> Result<(), StepError> {
        match kind {
            MountKind::Snapshot { mount, selector, read_only, .. }
                if matches!(selector.as_str(), "" | "/") =>
            {
                self.root = Some(Root { mount, read_only });
                Ok(())
            }
            _ => Err(StepError::Unsupported { what: "a root mount that is not a whole tree".to_owned() }),
        }
    }

    async fn bind(
        &mut self,
        workshop: &Arc<Workshop>,
        number: usize,
        mount: &pb::Mount,
        input: Tree,
    ) -> Result<MountKind, StepError> {
        let selector = mount.selector.clone();
        // Mount points are made in a root before it is read-only.
        let is_root = mount.dest == "/";
        if mount.readonly && !is_root && input.snapshot().is_some() && mount.output < 0 {
            let source = Arc::clone(workshop);
            let tree = input.clone();
            let found = StepError::blocking(move || source.stores.mount(&tree)).await?;
            self.held.push(input);
            let mount = found.expect("a tree with a snapshot has a mount");
            return Ok(MountKind::Snapshot { mount, selector, read_only: true, shared: false });
        }
        let stores = workshop.stores.clone();
        let draft = StepError::blocking(move || stores.begin(&input)).await?;
        let (snapshot, read_only) = (draft.mount().clone(), mount.readonly);
        let kind = MountKind::Snapshot { mount: snapshot, selector, read_only, shared: false };
        if mount.output >= 0 {
            self.outputs.push((number, draft))
        } else {
            self.scratch.push((number, draft))
        }
        Ok(kind)
    }

    /// Takes all cache mounts, in one order for all steps: two steps that lock the same two cannot wait for each other.
    async fn take_caches(
        &mut self,
        workshop: &Arc<Workshop>,
        op: &pb::ExecOp,
        inputs: &[Tree],
        cx: &Wanted<'_>,
    ) -> Result<(), StepError> {
        let mut wanted = BTreeMap::new();
        for mount in op.mounts.iter().filter(|mount| mount.mount_type() == pb::MountType::Cache) {
            let input = usize::try_from(mount.input).ok().and_then(|index| inputs.get(index));
            let input = input.cloned().unwrap_or_else(Tree::empty);
            // Named twice, the stricter way counts.
            let sharing = mount.cache_opt.as_ref().map(pb::CacheOpt::sharing).unwrap_or_default();
            let rank = match sharing {
                pb::CacheSharingOpt::Shared => 0,
                pb::CacheSharingOpt::Private => 1,
                pb::CacheSharingOpt::Locked => 2,
            };
            let entry = wanted.entry(cache_id(mount, &input)).or_insert((rank, input, mount.dest.clone()));
            entry.0 = entry.0.max(rank);
        }
        for (id, (rank, input, dest)) in wanted {
            let sharing = [Sharing::Shared, Sharing::Private, Sharing::Locked][rank];
            let taken = Arc::clone(&workshop.cache).mount(&id.0, sharing, &input, &dest);
            let cache = tokio::select! {
                cache = taken => cache?,
                () = cx.cancel().cancelled() => return Err(StepError::Canceled),
            };
            self.caches.insert(id, cache);
        }
        Ok(())
    }

    fn cache(&self, mount: &pb::Mount, input: &Tree) -> Result<MountKind, StepError> {
        let taken = self
            .caches
            .get(&cache_id(mount, input))
            .ok_or_else(|| StepError::Invalid { what: format!("cache mount {}", mount.dest) })?;
        Ok(MountKind::Snapshot {
            mount: taken.mount().clone(),
            selector: mount.selector.clone(),
            read_only: mount.readonly,
            shared: true,
        })
    }

    async fn ssh(
        &mut self,
        workshop: &Arc<Workshop>,
        mount: &pb::Mount,
        cx: &Wanted<'_>,
    ) -> Result<Option<MountKind>, StepError> {
        let options = mount.ssh_opt.clone().unwrap_or_default();
        let dir = tempfile::Builder::new()
            .prefix("ssh-")
            .tempdir_in(&workshop.runtime_dir)
            .map_err(|source| StepError::Io { what: "a directory for an ssh agent's socket", source })?;
        let socket = dir.path().join("agent.sock");
        let wanted = SshSocket {
            path: socket.clone(),
            owner: Some((options.uid, options.gid)),
            mode: options.mode & 0o7777,
        };
        let ids = cx.sessions();
        let agent = workshop
            .sessions
            .any(&ids, |caller| {
                let (id, wanted) = (options.id.clone(), wanted.clone());
                async move { caller.ssh_agent(&id, &wanted).await }
            })
            .await;
        match agent {
            Ok(agent) => {
                self.agents.push((agent, dir));
                Ok(Some(MountKind::SshAgent {
                    socket,
                    uid: options.uid,
                    gid: options.gid,
                    mode: options.mode,
                }))
            }
            Err(_) if options.optional => Ok(None),
            // The client forwards none at all.
            Err(lapstrake_session::Error::Unsupported { .. }) => {
                Err(StepError::NoSshAgent { id: options.id })
            }
            Err(error) => Err(error.into()),
        }
    }

    /// The root file system's mount.
    pub(crate) fn take_root(&mut self) -> Result<Root, StepError> {
        self.root.take().ok_or_else(|| StepError::Invalid { what: "exec without a root mount".to_owned() })
    }

    /// All other mounts, outer ones first.
    pub(crate) fn take_mounts(&mut self) -> Vec<MountSpec> {
        std::mem::take(&mut self.mounts)
    }

    /// The snapshots that are mounted, by the mount's number.
    pub(crate) fn snapshots(&self) -> &[Option<SnapshotMount>] {
        &self.snapshots
    }

    /// Variables whose values are secrets.
    pub(crate) fn secret_env(&mut self) -> Vec<String> {
        std::mem::take(&mut self.secret_env)
    }

    /// The drafts, by mount, also those that are no outputs; everything else is given back.
    pub(crate) fn leave(self) -> Vec<(usize, Draft)> {
        self.outputs.into_iter().chain(self.scratch).collect()
    }

    /// The drafts that are outputs, by mount; everything else is given back.
    pub(crate) fn finish(self) -> Vec<(usize, Draft)> {
        self.outputs
    }
}

/// A cache mount's id, and the snapshot that it begins as.
pub(crate) type CacheId = (String, Option<String>);

/// Makes the cache mounts of a step without cache begin anew, as BuildKit does: once a build, so that its further steps find what the first left.
pub(crate) async fn renew_caches(
    workshop: &Arc<Workshop>,
    op: &pb::ExecOp,
    inputs: &[Tree],
    scope: &BuildScope,
) -> Result<(), StepError> {
    for mount in op.mounts.iter().filter(|mount| mount.mount_type() == pb::MountType::Cache) {
        let input = usize::try_from(mount.input).ok().and_then(|index| inputs.get(index));
        let input = input.cloned().unwrap_or_else(Tree::empty);
        let id = cache_id(mount, &input);
        // Held meanwhile: another step of the build must not take what is about to be forgotten.
        let mut renewed = scope.renewed.lock().await;
        if renewed.insert(id.clone()) {
            Arc::clone(&workshop.cache).forget_mount(&id.0, &input).await?;
        }
    }
    Ok(())
}

fn cache_id(mount: &pb::Mount, input: &Tree) -> CacheId {
    let id = mount.cache_opt.as_ref().map(|options| options.id.clone()).unwrap_or_default();
    (id, input.snapshot().map(ToString::to_string))
}

fn tmpfs_size(mount: &pb::Mount) -> Option<u64> {
    mount.tmpfs_opt.as_ref().and_then(|options| u64::try_from(options.size).ok()).filter(|size| *size > 0)
}

async fn secret(
    workshop: &Arc<Workshop>,
    mount: &pb::Mount,
    cx: &Wanted<'_>,
) -> Result<Option<MountKind>, StepError> {
    let options = mount.secret_opt.clone().unwrap_or_default();
    let found = find_secret(workshop, &options.id, options.optional, cx).await?;
    Ok(found.map(|secret| MountKind::Secret {
        data: secret.into_bytes(),
        uid: options.uid,
        gid: options.gid,
        mode: options.mode & 0o7777,
    }))
}

pub(crate) async fn find_secret(
    workshop: &Arc<Workshop>,
    id: &str,
    optional: bool,
    cx: &Wanted<'_>,
) -> Result<Option<Secret>, StepError> {
    let ids = cx.sessions();
    if ids.is_empty() {
        return if optional { Ok(None) } else { Err(StepError::NoSecret { id: id.to_owned() }) };
    }
    let found = workshop
        .sessions
        .any(&ids, |caller| {
            let id = id.to_owned();
            async move { caller.secret(&id).await }
        })
        .await;
    match found {
        Ok(secret) => Ok(Some(secret)),
        Err(lapstrake_session::Error::SecretNotFound { .. }) if optional => Ok(None),
        Err(lapstrake_session::Error::SecretNotFound { .. }) => {
            Err(StepError::NoSecret { id: id.to_owned() })
        }
        Err(error) => Err(error.into()),
    }
}
