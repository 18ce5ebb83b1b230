//! `RUN`: a process over drafts of its inputs.

use std::sync::Arc;

use futures::future::BoxFuture;
use lapstrake_builder_cache::RecordKind;
use lapstrake_builder_executor::{
    ContainerEdits, DnsConfig, ExecError, ExitStatus, ExtraHost, NetworkMode, OutputSink, ProcessIo,
    ProcessSpec, SecurityMode, StubPolicy, Ulimit,
};
use lapstrake_builder_llb::{Vertex, cache_key, pb};
use lapstrake_builder_progress::{Stream, VertexHandle};
use lapstrake_builder_solver::OpContext;
use lapstrake_layerstore_oci::Platform;
use lapstrake_layerstore_store::{Draft, Tree};
use tokio::sync::mpsc;

use super::{
    KeyedStep, Workshop, classic,
    mounts::{MountPlan, Wanted, renew_caches},
};
use crate::{
    Left, OutOfMemory, Resources, StepError,
    classic::words,
    entitlements::requests,
    kept::{self, FailedStep},
    scope::{BuildScope, EngineTypes},
    step_error::emulator_advice,
};

/// Chunks of output that may wait for the progress spool.
const OUTPUT_CHUNKS: usize = 64;

pub(crate) struct ExecStep {
    workshop: Arc<Workshop>,
    op: pb::ExecOp,
    meta: pb::Meta,
    /// What the process is for.
    platform: Platform,
    key: cache_key::OpKey,
    outputs: usize,
    /// Whether the result is to be what the classic builder makes of it.
    is_classic: bool,
}

impl ExecStep {
    pub(crate) fn new(
        workshop: Arc<Workshop>,
        op: pb::ExecOp,
        platform: Option<pb::Platform>,
        vertex: &Vertex,
    ) -> Result<Self, StepError> {
        let meta =
            op.meta.clone().ok_or_else(|| StepError::Invalid { what: "exec without meta".to_owned() })?;
        if let Some(wanted) = platform.as_ref()
            && wanted.os != "linux"
        {
            return Err(StepError::Unsupported { what: format!("running processes for {}", wanted.os) });
        }
        let mut key = cache_key::exec(&op, platform.as_ref(), vertex.inputs.len())
            .map_err(|what| StepError::Invalid { what })?;
        let is_classic = cache_key::is_classic(&vertex.op);
        if is_classic {
            key = key.in_classic();
        }
        let outputs = op.mounts.iter().map(|mount| mount.output + 1).max().unwrap_or(0);
        let outputs = usize::try_from(outputs).unwrap_or(0);
        let platform = platform.as_ref().map_or_else(Platform::host, |platform| {
            Platform::new(&platform.os, &platform.architecture).with_variant(&platform.variant).normalized()
        });
        Ok(Self { workshop, op, meta, platform, key, outputs, is_classic })
    }

    fn description(&self, mount: &pb::Mount) -> String {
        format!("mount {} from exec {}", mount.dest, self.meta.args.join(" "))
    }

    async fn process(
        &self,
        vertex: &Vertex,
        cx: &OpContext<EngineTypes>,
        inputs: Vec<Tree>,
    ) -> Result<Vec<Tree>, StepError> {
        let _slot = self.workshop.slot(cx).await?;
        if vertex.metadata.ignore_cache
            && let Some(scope) = cx.peek_scopes().first()
        {
            renew_caches(&self.workshop, &self.op, &inputs, scope).await?;
        }
        let mut plan =
            MountPlan::prepare(&self.workshop, &self.op, inputs.clone(), &Wanted::Step(cx)).await?;
        let mut spec = self.spec(&mut plan, cx)?;
        spec.devices = self.devices().await?;
        let (stdout, stderr, pump) = output(cx.vertex.clone());
        let io = ProcessIo { stdout, stderr, ..ProcessIo::default() };
        let memory = spec.resources.memory;
        let result = self.workshop.executor.run(spec, io, cx.cancel.clone()).await;
        // The sinks are gone with `run`, so what is still under way arrives now.
        pump.await.expect("the pump does not panic");
        match self.judge(result, memory) {
            Ok(()) => self.commit(plan).await,
            Err(error) => {
                self.advise(&error, cx).await;
                Err(self.give_up(plan, error, &inputs, cx).await?)
            }
        }
    }

    /// Drops what a process wrote, but for what builds want to have of a step that failed: its root as an image, or all of it to look at. What
    /// was mounted there is not in it, and the executor has removed the mount points that it made.
    async fn give_up(
        &self,
        plan: MountPlan,
        error: StepError,
        inputs: &[Tree],
        cx: &OpContext<EngineTypes>,
    ) -> Result<StepError, StepError> {
        let scopes = cx.peek_scopes();
        let is_shown = !matches!(error, StepError::Canceled) && scopes.iter().any(|scope| scope.shows_failed);
        let exit = match error {
            StepError::Exit { code, oom, .. } => Some((code, oom)),
            _ => None,
        };
        let mut asking: Vec<_> = scopes.iter().filter_map(|scope| scope.failed.clone()).collect();
        asking.retain(|_| exit.is_some());
        let root = self.op.mounts.iter().position(|mount| mount.dest == "/");
        let is_wanted = {
            let (has_asking, op) = (!asking.is_empty(), self.op.clone());
            move |mount: usize| {
                (is_shown && !op.mounts[mount].readonly) || (has_asking && Some(mount) == root)
            }
        };
        let (workshop, is_classic) = (Arc::clone(&self.workshop), self.is_classic);
        // What the process wrote may be much to delete.
        let ends = StepError::blocking(move || -> Result<Vec<End>, StepError> {
            let wanted = plan.leave().into_iter().filter(|(mount, _)| is_wanted(*mount));
            let commit = |draft: Draft| match is_classic {
                true => classic::commit(&workshop.stores, draft),
                false => draft.commit().map_err(StepError::from),
            };
            Ok(wanted.map(|(mount, draft)| (mount, commit(draft))).collect())
        })
        .await?;
        if let Some((code, oom)) = exit {
            let of_root = ends.iter().find(|(mount, _)| Some(*mount) == root).map(|(_, end)| end);
            let left = match of_root {
                Some(Ok(tree)) => Ok(tree.clone()),
                Some(Err(error)) => Err(words(error)),
                None => Err("invalid op: its root is not to be written to".to_owned()),
            };
            for failed in asking {
                failed.add(FailedStep {
                    vertex: cx.vertex.digest(),
                    name: cx.vertex.name(),
                    left: left.clone(),
                    config: kept::config(&self.meta, &self.platform),
                    code,
                    oom: oom.is_some(),
                });
            }
        }
        if !is_shown {
            return Ok(error);
        }
        let input = |mount: &pb::Mount| inputs.get(usize::try_from(mount.input).ok()?).cloned();
        let inputs: Vec<Option<Tree>> = self.op.mounts.iter().map(input).collect();
        let mut left = Left { ends: inputs.clone(), inputs, part: None };
        for (mount, end) in ends {
            if let Ok(tree) = end {
                left.ends[mount] = Some(tree);
            }
        }
        Ok(StepError::Left { error: Box::new(error), left: Box::new(left) })
    }

    /// Says in the step's log that it may have failed because nothing here runs its platform's programs: an external runtime's words, and
    /// those of shells, are the kernel's alone (`exec format error`).
    async fn advise(&self, error: &StepError, cx: &OpContext<EngineTypes>) {
        let is_told = matches!(error, StepError::Foreign { .. } | StepError::Canceled);
        if !is_told && !self.workshop.architectures.runs(&self.platform.architecture).await {
            let advice = format!("exec format error means that {}\n", emulator_advice(&self.platform));
            cx.vertex.log(Stream::Stderr, advice.into_bytes());
        }
    }

    /// Whether the process did what it should.
    fn judge(&self, result: Result<ExitStatus, ExecError>, memory: Option<u64>) -> Result<(), StepError> {
        let args = || self.meta.args.clone();
        let status = result.map_err(|error| match error {
            ExecError::Cancelled(_) => StepError::Canceled,
            // As the program itself says, whatever its image does.
            ExecError::Foreign { ref architecture, .. } => {
                let mut platform = self.platform.clone();
                if platform.architecture != *architecture {
                    platform = Platform::new(&platform.os, architecture);
                }
                StepError::Foreign { args: args(), platform: Box::new(platform), source: error }
            }
            source => StepError::Run { args: args(), source },
        })?;
        let valid =
            if self.meta.valid_exit_codes.is_empty() { &[0][..] } else { &self.meta.valid_exit_codes };
        if valid.contains(&status.code) {
            return Ok(());
        }
        let oom = status.oom_killed.then_some(OutOfMemory { limit: memory });
        Err(StepError::Exit { args: args(), code: status.code, oom })
    }

    /// What the process's devices bring.
    async fn devices(&self) -> Result<ContainerEdits, StepError> {
        if self.op.cdi_devices.is_empty() {
            return Ok(ContainerEdits::default());
        }
        let list = self.workshop.device_list().await?;
        let wanted = self.op.cdi_devices.clone();
        let edits = StepError::blocking(move || -> Result<_, StepError> {
            Ok(list.find(requests(&wanted)).and_then(|names| list.edits(&names)))
        })
        .await?;
        edits.map_err(|source| StepError::Run { args: self.meta.args.clone(), source })
    }

    fn spec(&self, plan: &mut MountPlan, cx: &OpContext<EngineTypes>) -> Result<ProcessSpec, StepError> {
        let root = plan.take_root()?;
        let mut spec = ProcessSpec::new(root.mount, self.meta.args.clone());
        spec.read_only_root = root.read_only;
        spec.env = self.meta.env.clone();
        spec.env.extend(proxy_env(self.meta.proxy_env.as_ref()));
        if !spec.env.iter().any(|variable| variable.starts_with("PATH=")) {
            spec.env.push(format!("PATH={DEFAULT_PATH}"));
        }
        spec.env.extend(plan.secret_env());
        spec.cwd = self.meta.cwd.clone();
        spec.user = self.meta.user.clone();
        spec.hostname = self.meta.hostname.clone();
        spec.dns = DnsConfig::default();
        spec.network = match self.op.network() {
            pb::NetMode::Unset => NetworkMode::Default,
            pb::NetMode::Host => NetworkMode::Host,
            pb::NetMode::None => NetworkMode::None,
        };
        // That it may was found out when the graph was loaded.
        spec.security = match self.op.security() {
            pb::SecurityMode::Sandbox => SecurityMode::Sandbox,
            pb::SecurityMode::Insecure => SecurityMode::Insecure,
        };
        for host in &self.meta.extra_hosts {
            let ip = host.ip.parse().map_err(|_| StepError::Invalid {
                what: format!("extra host {}: {:?} is not an IP address", host.host, host.ip),
            })?;
            spec.extra_hosts.push(ExtraHost { host: host.host.clone(), ip });
        }
        spec.ulimits = self
            .meta
            .ulimit
            .iter()
            .map(|limit| Ulimit { name: limit.name.to_lowercase(), soft: limit.soft, hard: limit.hard })
            .collect();
        if !self.meta.cgroup_parent.is_empty() {
            spec.cgroup_parent = Some(self.meta.cgroup_parent.clone());
        }
        // Builds that share the step share its process: the limits of the one that waits longest count.
        let is_limited = |scope: &Arc<BuildScope>| scope.resources != Resources::default();
        // Without limits it fails the same for whoever else waits; with limits, it may be for them that it does.
        if cx.peek_scopes().first().is_some_and(is_limited)
            && let Some(scope) = cx.scopes().first()
        {
            spec.resources = scope.resources.clone();
        }
        if self.is_classic {
            spec.stubs = StubPolicy::RemoveAll;
        } else if self.meta.remove_mount_stubs_recursive {
            spec.stubs = StubPolicy::RemoveTargetsAndParents;
        }
        spec.mounts = plan.take_mounts();
        Ok(spec)
    }

    async fn commit(&self, plan: MountPlan) -> Result<Vec<Tree>, StepError> {
        let drafts = plan.finish();
        let described: Vec<_> = drafts
            .into_iter()
            .map(|(mount, draft)| {
                (self.op.mounts[mount].output, self.description(&self.op.mounts[mount]), draft)
            })
            .collect();
        let workshop = Arc::clone(&self.workshop);
        let (outputs, is_classic) = (self.outputs, self.is_classic);
        StepError::blocking(move || -> Result<Vec<Tree>, StepError> {
            let mut trees = vec![Tree::empty(); outputs];
            for (output, description, result) in described {
                let tree = match is_classic {
                    true => classic::commit(&workshop.stores, result)?,
                    false => result.commit()?,
                };
                workshop.cache.record(&tree, RecordKind::Regular, &description)?;
                if let Some(place) = usize::try_from(output).ok().and_then(|output| trees.get_mut(output)) {
                    *place = tree;
                }
            }
            Ok(trees)
        })
        .await
    }
}

impl KeyedStep for ExecStep {
    fn workshop(&self) -> &Arc<Workshop> {
        &self.workshop
    }

    fn key(&self) -> &cache_key::OpKey {
        &self.key
    }

    fn run<'a>(
        &'a self,
        vertex: &'a Vertex,
        cx: &'a OpContext<EngineTypes>,
        inputs: Vec<Tree>,
    ) -> BoxFuture<'a, Result<Vec<Tree>, StepError>> {
        Box::pin(self.process(vertex, cx, inputs))
    }
}

/// What a mount of this number was committed as.
type End = (usize, Result<Tree, StepError>);

/// Where a step's program is looked for, if its graph does not say: as in BuildKit, and as there no part of the cache key.
const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

fn proxy_env(proxy: Option<&pb::ProxyEnv>) -> Vec<String> {
    let Some(proxy) = proxy else { return Vec::new() };
    [
        ("HTTP_PROXY", &proxy.http_proxy),
        ("HTTPS_PROXY", &proxy.https_proxy),
        ("FTP_PROXY", &proxy.ftp_proxy),
        ("NO_PROXY", &proxy.no_proxy),
        ("ALL_PROXY", &proxy.all_proxy),
    ]
    .into_iter()
    .filter(|(_, value)| !value.is_empty())
    .flat_map(|(name, value)| [format!("{name}={value}"), format!("{}={value}", name.to_lowercase())])
    .collect()
}

/// Sinks whose output goes to the vertex's log, in the order it was read, and the task that carries it there.
fn output(vertex: VertexHandle) -> (OutputSink, OutputSink, tokio::task::JoinHandle<()>) {
    let (out, mut stdout) = mpsc::channel(OUTPUT_CHUNKS);
    let (err, mut stderr) = mpsc::channel(OUTPUT_CHUNKS);
    let pump = tokio::spawn(async move {
        loop {
            // `None` disables a branch; when both ends are closed, the output is complete.
            tokio::select! {
                Some(data) = stdout.recv() => vertex.log(Stream::Stdout, bytes::Bytes::into(data)),
                Some(data) = stderr.recv() => vertex.log(Stream::Stderr, bytes::Bytes::into(data)),
                else => break,
            }
        }
    });
    (OutputSink::Channel(out), OutputSink::Channel(err), pump)
}
