//! What network a run gets: none, the host's, or a sandbox of its own.
//!
//! A sandbox is made before anybody asks for it: a thread keeps a few ready, so that a run only enters one. It is used once, and
//! thrown away after the run. See [`switch`] for what it is connected to.

mod firewall;
mod links;
mod netlink;
mod resolver;
mod subnet;
mod switch;

use std::{
    net::{IpAddr, Ipv4Addr},
    os::fd::{AsFd, BorrowedFd},
    sync::{Arc, Mutex as StdMutex, OnceLock, PoisonError},
    time::Duration,
};

use tokio::sync::{Mutex, mpsc};
use tokio_util::sync::{CancellationToken, DropGuard};

pub use self::subnet::Subnet;
use self::{
    subnet::Addresses,
    switch::{Sandbox, Switch},
};
use crate::{DnsConfig, ExecError, NetworkMode, files};

/// Sandboxes that are removed together, unless this time passes before.
const MAX_SPENT: usize = 16;
const SPENT_FOR: Duration = Duration::from_millis(500);

/// What [`NetworkMode::Default`] means.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum DefaultNetwork {
    /// A sandbox where the machine can, else the host's network, with one warning in the log.
    #[default]
    Auto,
    /// A sandbox; where the machine cannot, runs fail and say why.
    Sandbox,
    /// The host's network.
    Host,
    /// No network.
    None,
}

/// What runs get for a network.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NetworkOptions {
    /// What runs get that ask for nothing else.
    pub default: DefaultNetwork,
    /// Who this is, among all that make sandboxes on this machine: the daemon's root. Names the host's interface.
    pub owner: String,
    /// The sandboxes' addresses; chosen among private ones that the machine does not use when not said.
    pub subnet: Option<Subnet>,
    /// Sandboxes kept ready, at least one.
    pub pool: usize,
    /// Goes before what the host's `resolv.conf` says, field by field; a run's own goes before both.
    pub dns: DnsConfig,
}

impl Default for NetworkOptions {
    fn default() -> Self {
        Self {
            default: DefaultNetwork::Auto,
            owner: String::new(),
            subnet: None,
            pool: 8,
            dns: DnsConfig::default(),
        }
    }
}

/// Networks for runs. A handle: clones mean the same. Nothing is made before the first run that needs a sandbox; when the last
/// handle is dropped, all is removed.
#[derive(Debug, Clone)]
pub struct Network {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    options: NetworkOptions,
    /// Or why there are no sandboxes.
    pool: OnceLock<Result<Pool, String>>,
}

/// Sandboxes that are ready, and what all of them share.
#[derive(Debug)]
struct Pool {
    ready: Mutex<mpsc::Receiver<Result<Sandbox, ExecError>>>,
    gateway: Ipv4Addr,
    resolver: Ipv4Addr,
    addresses: Addresses,
    spent: Arc<Spent>,
    _serving: DropGuard,
}

/// What one run gets. To be held until its last process is gone.
#[derive(Debug)]
pub(crate) enum Attachment {
    Host,
    Empty,
    Sandbox(Attached),
}

/// A sandbox in use.
#[derive(Debug)]
pub(crate) struct Attached {
    /// Until it is dropped.
    sandbox: Option<Sandbox>,
    spent: Arc<Spent>,
    resolver: Ipv4Addr,
}

impl Attached {
    /// The namespace to enter.
    pub(crate) fn namespace(&self) -> BorrowedFd<'_> {
        self.sandbox.as_ref().expect("it is not dropped yet").namespace.as_fd()
    }

    /// A name server that asks the machine's.
    pub(crate) fn resolver(&self) -> Ipv4Addr {
        self.resolver
    }
}

impl Drop for Attached {
    fn drop(&mut self) {
        if let Some(sandbox) = self.sandbox.take() {
            self.spent.take(sandbox);
        }
    }
}

/// Sandboxes that nobody is in any more. The kernel removes many in the time that it needs for one, and while it does, nothing of any network
/// can be changed, so that whoever waits for a sandbox would wait for that, too.
#[derive(Debug, Default)]
struct Spent(StdMutex<Vec<Sandbox>>);

impl Spent {
    fn take(self: &Arc<Self>, sandbox: Sandbox) {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        all.push(sandbox);
        if all.len() >= MAX_SPENT {
            all.clear();
        } else if all.len() == 1
            && let Ok(runtime) = tokio::runtime::Handle::try_current()
        {
            let spent = Arc::downgrade(self);
            runtime.spawn(async move {
                tokio::time::sleep(SPENT_FOR).await;
                if let Some(spent) = spent.upgrade() {
                    spent.0.lock().unwrap_or_else(PoisonError::into_inner).clear();
                }
            });
        }
    }
}

impl Network {
    /// Networks as `options` say. Does nothing yet.
    pub fn new(options: NetworkOptions) -> Self {
        Self { inner: Arc::new(Inner { options, pool: OnceLock::new() }) }
    }

    /// The address at which runs of [`NetworkMode::Default`] reach the machine (`host-gateway`). Makes their network if there is
    /// none yet; without one, it is loopback, as runs have the machine's own network.
    pub async fn host_address(&self) -> Ipv4Addr {
        match self.inner.options.default {
            DefaultNetwork::Host | DefaultNetwork::None => Ipv4Addr::LOCALHOST,
            DefaultNetwork::Auto | DefaultNetwork::Sandbox => match self.pool().await {
                Ok(pool) => pool.gateway,
                Err(_) => Ipv4Addr::LOCALHOST,
            },
        }
    }

    pub(crate) fn dns(&self) -> &DnsConfig {
        &self.inner.options.dns
    }

    /// A network for one run.
    pub(crate) async fn attach(&self, mode: NetworkMode) -> Result<Attachment, ExecError> {
        let is_required = match (mode, self.inner.options.default) {
            (NetworkMode::Host, _) | (NetworkMode::Default, DefaultNetwork::Host) => {
                return Ok(Attachment::Host);
            }
            (NetworkMode::None, _) | (NetworkMode::Default, DefaultNetwork::None) => {
                return Ok(Attachment::Empty);
            }
            (NetworkMode::Default, default) => default == DefaultNetwork::Sandbox,
        };
        match self.pool().await {
            Ok(pool) => {
                let sandbox = pool.ready.lock().await.recv().await;
                let sandbox = sandbox.unwrap_or_else(|| {
                    Err(ExecError::NoSandboxNetwork {
                        reason: "whoever makes sandboxes has ended".to_owned(),
                    })
                })?;
                Ok(Attachment::Sandbox(Attached {
                    sandbox: Some(sandbox),
                    spent: Arc::clone(&pool.spent),
                    resolver: pool.resolver,
                }))
            }
            Err(reason) if is_required => Err(ExecError::NoSandboxNetwork { reason: reason.to_owned() }),
            Err(_) => Ok(Attachment::Host),
        }
    }

    async fn pool(&self) -> Result<&Pool, &str> {
        if self.inner.pool.get().is_none() {
            // Not given up when the run that needs it is: the next one would begin anew beside it.
            let inner = Arc::clone(&self.inner);
            let making = tokio::task::spawn_blocking(move || {
                inner.pool.get_or_init(|| inner.fill());
            });
            making.await.expect("making a network does not panic");
        }
        self.inner.pool.get().expect("it was just made").as_ref().map_err(String::as_str)
    }
}

impl Inner {
    /// Starts the thread that makes sandboxes, and waits until it can.
    fn fill(&self) -> Result<Pool, String> {
        let (ready, sandboxes) = mpsc::channel(self.options.pool.max(1));
        let (built, outcome) = std::sync::mpsc::sync_channel(1);
        let (name, subnet) = (interface_name(&self.options.owner), self.options.subnet);
        let upstream = upstream(&self.options.dns);
        let avoid = upstream();
        // Its network namespace changes all the time: a thread of its own, which nobody else ever runs on.
        let thread = std::thread::Builder::new().name("sandbox-network".to_owned()).spawn(move || {
            let (mut switch, resolver) = match Switch::build(&name, subnet, &avoid) {
                Ok(made) => made,
                Err(error) => return drop(built.send(Err(error))),
            };
            let _ = built.send(Ok((switch.subnet(), switch.addresses(), resolver)));
            while let Some(sandbox) = switch.sandbox().transpose() {
                if ready.blocking_send(sandbox).is_err() {
                    return;
                }
            }
        });
        let made = thread.map_err(|source| ExecError::Io { doing: "start thread", source });
        let made = made.and_then(|_| outcome.recv().expect("the thread tells how it went"));
        let made = made.and_then(|(subnet, addresses, resolver)| {
            let stop = CancellationToken::new();
            resolver
                .serve(upstream, stop.clone())
                .map_err(|source| ExecError::Io { doing: "serve the resolver", source })?;
            tracing::debug!(%subnet, interface = interface_name(&self.options.owner), "made the sandboxes' network");
            Ok(Pool {
                ready: Mutex::new(sandboxes),
                gateway: subnet.gateway(),
                resolver: subnet.bridge(),
                addresses,
                spent: Arc::default(),
                _serving: stop.drop_guard(),
            })
        });
        made.map_err(|error| {
            let reason = match error {
                ExecError::NoSandboxNetwork { reason } => reason,
                error => error.to_string(),
            };
            if self.options.default == DefaultNetwork::Auto {
                tracing::warn!(
                    "RUN steps have the machine's own network, as sandboxes cannot have theirs: {reason}"
                );
            }
            reason
        })
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.addresses.close();
    }
}

/// Whom the resolver asks: as configured, else as the host's file says at that moment.
fn upstream(dns: &DnsConfig) -> resolver::Upstream {
    let configured: Vec<IpAddr> = dns.nameservers.iter().filter_map(|server| server.parse().ok()).collect();
    Arc::new(move || if configured.is_empty() { files::host_nameservers() } else { configured.clone() })
}

/// `lapstrake` and five hexadecimal digits of the owner (FNV-1a): interfaces have 15 characters, and the probe needs one more.
fn interface_name(owner: &str) -> String {
    let hash = owner
        .bytes()
        .fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3));
    format!("lapstrake{:05x}", (hash ^ (hash >> 20) ^ (hash >> 40)) & 0xf_ffff)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_owner_has_one_name_that_fits() {
        let names: std::collections::BTreeSet<_> =
            (0..100).map(|n| interface_name(&format!("/var/lib/lapstrake{n}"))).collect();
        assert_eq!(names.len(), 100);
        assert!(names.iter().all(|name| name.len() == 14 && name.starts_with("lapstrake")));
        assert_eq!(interface_name("/a"), interface_name("/a"));
    }

    #[tokio::test]
    async fn modes_that_need_no_sandbox_make_none() {
        let attach = |default, mode| async move {
            let network = Network::new(NetworkOptions { default, ..NetworkOptions::default() });
            let attachment = network.attach(mode).await.unwrap();
            assert!(network.inner.pool.get().is_none());
            format!("{attachment:?}")
        };
        assert_eq!(attach(DefaultNetwork::Auto, NetworkMode::Host).await, "Host");
        assert_eq!(attach(DefaultNetwork::Sandbox, NetworkMode::None).await, "Empty");
        assert_eq!(attach(DefaultNetwork::Host, NetworkMode::Default).await, "Host");
        assert_eq!(attach(DefaultNetwork::None, NetworkMode::Default).await, "Empty");
        assert_eq!(attach(DefaultNetwork::None, NetworkMode::Host).await, "Host");
    }
}
