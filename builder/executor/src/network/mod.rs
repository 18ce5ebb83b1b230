//! What network a run gets: none, the host's, or a sandbox of its own.
//!
//! A sandbox is made before anybody asks for it: a thread keeps a few ready, so that a run only enters one. After the run it is thrown
//! away, unless nothing has happened in it: then it is the next one's. See [`switch`] for what it is connected to.

mod firewall;
mod links;
mod netlink;
mod resolver;
mod subnet;
mod switch;
mod witness;

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
const MAX_UNTOUCHED: usize = 16;
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
    used: Arc<Used>,
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
    /// Until it is given back or dropped.
    sandbox: Option<Sandbox>,
    used: Arc<Used>,
    resolver: Ipv4Addr,
}

impl Attached {
    /// The namespace to enter.
    pub(crate) fn namespace(&self) -> BorrowedFd<'_> {
        self.sandbox.as_ref().expect("it is not given back yet").namespace.as_fd()
    }

    /// Says that no process is in it any more, and that none could change it. When none has used it either, it is as good as new: most
    /// steps never open a socket.
    pub(crate) fn give_back(mut self) {
        if let Some(sandbox) = self.sandbox.take() {
            match sandbox.is_untouched() {
                true => self.used.keep(sandbox),
                false => self.used.spend(sandbox),
            }
        }
    }

    /// A name server that asks the machine's.
    pub(crate) fn resolver(&self) -> Ipv4Addr {
        self.resolver
    }
}

impl Drop for Attached {
    fn drop(&mut self) {
        if let Some(sandbox) = self.sandbox.take() {
            self.used.spend(sandbox);
        }
    }
}

/// Sandboxes that runs have had.
#[derive(Debug, Default)]
struct Used {
    untouched: StdMutex<Vec<Sandbox>>,
    /// About to be removed. The kernel removes many in the time that it needs for one, and while it does, nothing of any network can be
    /// changed, so that whoever waits for a sandbox would wait for that, too.
    spent: StdMutex<Vec<Sandbox>>,
}

impl Used {
    /// One that is as good as new.
    fn take(&self) -> Option<Sandbox> {
        self.untouched.lock().unwrap_or_else(PoisonError::into_inner).pop()
    }

    fn keep(self: &Arc<Self>, sandbox: Sandbox) {
        let mut untouched = self.untouched.lock().unwrap_or_else(PoisonError::into_inner);
        if untouched.len() < MAX_UNTOUCHED {
            untouched.push(sandbox);
        } else {
            drop(untouched);
            self.spend(sandbox);
        }
    }

    fn spend(self: &Arc<Self>, sandbox: Sandbox) {
        let mut spent = self.spent.lock().unwrap_or_else(PoisonError::into_inner);
        spent.push(sandbox);
        if spent.len() >= MAX_SPENT {
            spent.clear();
        } else if spent.len() == 1
            && let Ok(runtime) = tokio::runtime::Handle::try_current()
        {
            let used = Arc::downgrade(self);
            runtime.spawn(async move {
                tokio::time::sleep(SPENT_FOR).await;
                if let Some(used) = used.upgrade() {
                    used.spent.lock().unwrap_or_else(PoisonError::into_inner).clear();
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
                let (used, resolver) = (Arc::clone(&pool.used), pool.resolver);
                let sandbox = Some(pool.take().await?);
                Ok(Attachment::Sandbox(Attached { sandbox, used, resolver }))
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
                used: Arc::default(),
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

impl Pool {
    async fn take(&self) -> Result<Sandbox, ExecError> {
        if let Some(sandbox) = self.used.take() {
            return Ok(sandbox);
        }
        let ended = || ExecError::NoSandboxNetwork { reason: "whoever makes sandboxes has ended".to_owned() };
        self.ready.lock().await.recv().await.ok_or_else(ended)?
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
