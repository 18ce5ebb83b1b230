//! The sandboxes' network: a switch in a namespace of its own, one interface on the host.
//!
//! ```text
//!  the host's namespace              the switch's namespace                       a sandbox
//!  nft table IF: NAT, who may        bridge .2 (resolver)                         eth0 .N, lo
//!  IF .1 ═══════════════════════════ uplink ─┬─ s1 ══════════════════════════════ default route: .1
//!  forwarding, default route                 ├─ s2 ═══ …  ports that talk to the uplink only
//! ```
//!
//! Everything is held by descriptors and sockets of this process: when they are closed, by whatever end, the kernel removes the
//! namespaces, with them both ends of every pair, and the table. There is nothing to repair after `kill -9`.
//!
//! The host sees one interface that comes once and stays: nothing that watches interfaces (udev, NetworkManager) is woken by
//! a RUN, and ports, addresses and the resolver's port 53 cannot collide with the host's own.

use std::{
    fs, io,
    net::{IpAddr, Ipv4Addr, SocketAddr, SocketAddrV4, TcpListener, UdpSocket},
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    time::Duration,
};

use lapstrake_layerstore_store::in_user_namespace;
use nix::sched::CloneFlags;
use rustix::{
    fs::{CWD, Mode, OFlags},
    net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType},
    thread::LinkNameSpaceType,
};

use super::{
    firewall::Firewall,
    links::{End, Index, LOOPBACK, Mac},
    netlink::{Connection, Requests},
    resolver::Resolver,
    subnet::{Address, Addresses, Subnet},
    witness::Witness,
};
use crate::ExecError;

/// The bridge's number, and that of the first port for a sandbox: far beyond what the kernel gives by itself.
const BRIDGE: Index = Index(1000);
const FIRST_PORT: i32 = 1001;
/// The number of `eth0` in a sandbox, which may begin with devices that some modules put into every namespace.
const ETH0: Index = Index(100);
/// What Ethernet has.
const DEFAULT_MTU: u32 = 1500;
/// A packet within one machine takes microseconds; a busy machine has this long, so many times.
const PROBE_WITHIN: Duration = Duration::from_millis(250);
const PROBES: u32 = 4;
/// The same for an interface to be ready, in steps.
const LINK_STEPS: u32 = 20_000;
const LINK_STEP: Duration = Duration::from_micros(250);

/// A network namespace for one run, with an address in it. Gone when this is dropped and the run's processes are.
#[derive(Debug)]
pub(super) struct Sandbox {
    pub(super) namespace: OwnedFd,
    witness: Witness,
    /// Held for the witness.
    _connection: Connection,
    /// Held so that nobody else gets it.
    _address: Address,
}

impl Sandbox {
    /// Whether no packet was sent or received in it, and no socket is left of it.
    pub(super) fn is_untouched(&self) -> bool {
        self.witness.saw_nothing()
    }
}

/// What sandboxes are connected to.
#[derive(Debug)]
pub(super) struct Switch {
    name: String,
    host: Connection,
    /// The host's interface.
    interface: Index,
    inside: Connection,
    addresses: Addresses,
    subnet: Subnet,
    mtu: u32,
    ports: i32,
    /// The switch's.
    namespace: OwnedFd,
    // Held for what goes with them.
    _firewall: Firewall,
    _claims: [OwnedFd; 2],
}

trait Doing<T> {
    fn doing<S: Into<String>>(self, step: impl FnOnce() -> S) -> Result<T, ExecError>;
}

impl<T, E: Into<io::Error>> Doing<T> for Result<T, E> {
    fn doing<S: Into<String>>(self, step: impl FnOnce() -> S) -> Result<T, ExecError> {
        self.map_err(|source| ExecError::Setup { step: step().into(), source: source.into() })
    }
}

impl Switch {
    /// Makes everything but sandboxes. Leaves this thread in some namespace of its own: it must be good for nothing else.
    ///
    /// `name` is that of the host's interface and of the table; `avoid` are addresses that sandboxes must be able to reach.
    pub(super) fn build(
        name: &str,
        wanted: Option<Subnet>,
        avoid: &[IpAddr],
    ) -> Result<(Self, Resolver), ExecError> {
        let host_namespace = own_namespace()?;
        // Whether it is ours to change: root of a user namespace mostly has the machine's, and would hear so late.
        enter(host_namespace.as_fd()).map_err(|error| match in_user_namespace() {
            true => ExecError::NoSandboxNetwork {
                reason: "an ordinary user cannot add to the machine's network".to_owned(),
            },
            false => error,
        })?;
        let host = connect()?;
        let taken =
            || ExecError::NoSandboxNetwork { reason: format!("another process has the interface {name}") };
        let name_claim = claim(name).doing(|| format!("claim the name {name}"))?.ok_or_else(taken)?;
        sweep(&host, name)?;
        let (subnet, subnet_claim) = choose(&host, wanted, avoid)?;
        let mtu = host.mtu_outward().doing(|| "list routes")?.unwrap_or(DEFAULT_MTU);
        // Before there is anything to protect.
        let firewall = Firewall::raise(name, subnet).doing(|| format!("make nftables table {name}"))?;

        let namespace = new_namespace()?;
        let inside = connect()?;
        // What comes into this namespace later has none either.
        without_ipv6("default")?;
        let mut requests = Requests::default();
        requests.set_up(LOOPBACK).add_bridge("bridge", BRIDGE, mtu);
        requests.add_address(BRIDGE, subnet.bridge(), subnet.prefix());
        inside.ask(&requests).doing(|| "make bridge")?;
        let resolver = Resolver::bind(subnet.bridge()).doing(|| "open the resolver's sockets")?;

        enter(host_namespace.as_fd())?;
        let near = End { name, index: Index(0), mac: mac_of(subnet.gateway()) };
        let far = End { name: "uplink", index: Index(0), mac: mac_of(subnet.bridge()) };
        let mut requests = Requests::default();
        requests.add_pair(&near, &far, namespace.as_fd(), mtu);
        host.ask(&requests).doing(|| format!("make interface {name}"))?;
        let interface = host.index(name).doing(|| format!("find interface {name}"))?;
        without_ipv6(name)?;
        let uplink = inside.index("uplink").doing(|| "find the uplink")?;
        let mut requests = Requests::default();
        requests.set_master(uplink, BRIDGE).set_up(uplink);
        inside.ask(&requests).doing(|| "connect the bridge")?;
        let mut requests = Requests::default();
        requests.add_address(interface, subnet.gateway(), subnet.prefix()).set_up(interface);
        host.ask(&requests).doing(|| format!("give {name} the address {}", subnet.gateway()))?;
        forward_packets()?;

        let switch = Self {
            name: name.to_owned(),
            host,
            interface,
            inside,
            addresses: Addresses::new(subnet),
            subnet,
            mtu,
            ports: FIRST_PORT,
            namespace,
            _firewall: firewall,
            _claims: [name_claim, subnet_claim],
        };
        await_link(|| switch.inside.forwards(uplink))?;
        switch.probe(host_namespace.as_fd())?;
        Ok((switch, resolver))
    }

    pub(super) fn subnet(&self) -> Subnet {
        self.subnet
    }

    /// Who has which address; closing it ends [`Self::sandbox`].
    pub(super) fn addresses(&self) -> Addresses {
        self.addresses.clone()
    }

    /// Makes a sandbox. Blocks while all addresses are in use; `None` once they are closed. Moves this thread into its namespace.
    pub(super) fn sandbox(&mut self) -> Result<Option<Sandbox>, ExecError> {
        let Some(address) = self.addresses.take() else { return Ok(None) };
        let namespace = new_namespace()?;
        let own = connect()?;
        without_ipv6("default")?;
        // As in dockerd's containers: any user may bind any port and send pings. A kernel without them does without.
        let _ = fs::write("/proc/sys/net/ipv4/ip_unprivileged_port_start", "0");
        let _ = fs::write("/proc/sys/net/ipv4/ping_group_range", "0 2147483647");
        self.ports += 1;
        let (port, mac) = (Index(self.ports), mac_of(address.ip));
        let (port_name, gateway) = (format!("s{}", self.ports), self.subnet.gateway());
        let near = End { name: &port_name, index: port, mac: mac_of_port(self.ports) };
        let far = End { name: "eth0", index: ETH0, mac };
        let mut requests = Requests::default();
        requests
            .add_pair(&near, &far, namespace.as_fd(), self.mtu)
            .set_master(port, BRIDGE)
            .isolate_port(port, mac)
            .add_neighbour(BRIDGE, address.ip, mac)
            .set_up(port);
        self.inside.ask(&requests).doing(|| "connect a sandbox")?;
        let mut requests = Requests::default();
        requests
            .set_up(LOOPBACK)
            .set_up(ETH0)
            .add_address(ETH0, address.ip, self.subnet.prefix())
            .add_route(None, gateway, ETH0)
            .add_neighbour(ETH0, gateway, mac_of(gateway));
        own.ask(&requests).doing(|| format!("give a sandbox the address {}", address.ip))?;
        let mut requests = Requests::default();
        requests.add_neighbour(self.interface, address.ip, mac);
        self.host.ask(&requests).doing(|| format!("tell {} about a sandbox", self.name))?;
        await_link(|| self.inside.forwards(port))?;
        let witness = Witness::summon().doing(|| "read a sandbox's counters")?;
        Ok(Some(Sandbox { namespace, witness, _connection: own, _address: address }))
    }

    /// Finds out whether the host lets packets from here pass on, whoever decides that: another table, iptables, a security module.
    ///
    /// Sends one to a namespace that is there for that alone, and answers.
    fn probe(&self, host_namespace: BorrowedFd<'_>) -> Result<(), ExecError> {
        let (range, near_address, far_address) = self.subnet.probe();
        // No other daemon's: names of daemons are one shorter.
        let name = format!("{}x", self.name);
        sweep(&self.host, &name)?;
        let mut requests = Requests::default();
        requests.add_route(Some(range), self.subnet.gateway(), BRIDGE);
        self.inside.ask(&requests).doing(|| "lead the probe")?;
        enter(self.namespace.as_fd())?;
        let start = UdpSocket::bind((self.subnet.bridge(), 0)).doing(|| "open the probe")?;

        let far_namespace = new_namespace()?;
        let beyond = connect()?;
        without_ipv6("default")?;
        enter(host_namespace)?;
        let near = End { name: &name, index: Index(0), mac: mac_of(near_address) };
        let far = End { name: "eth0", index: Index(0), mac: mac_of(far_address) };
        let mut requests = Requests::default();
        requests.add_pair(&near, &far, far_namespace.as_fd(), self.mtu);
        self.host.ask(&requests).doing(|| format!("make interface {name}"))?;
        let _removal = Removal { host: &self.host, name: &name };
        without_ipv6(&name)?;
        let interface = self.host.index(&name).doing(|| format!("find interface {name}"))?;
        let eth0 = beyond.index("eth0").doing(|| "find the probe's end")?;
        // What arrives there comes from the near address, as everything that leaves the host: there is no route to any other.
        let mut requests = Requests::default();
        requests.set_up(eth0).add_address(eth0, far_address, range.prefix());
        beyond.ask(&requests).doing(|| "set up the probe's end")?;
        let mut requests = Requests::default();
        requests.add_address(interface, near_address, range.prefix()).set_up(interface);
        self.host.ask(&requests).doing(|| format!("give {name} an address"))?;
        await_link(|| beyond.is_up(eth0))?;

        enter(far_namespace.as_fd())?;
        let end = UdpSocket::bind((far_address, 0)).doing(|| "open the probe's end")?;
        let there = end.local_addr().doing(|| "open the probe's end")?;
        for socket in [&start, &end] {
            socket.set_read_timeout(Some(PROBE_WITHIN)).doing(|| "set up the probe")?;
        }
        if (0..PROBES).any(|_| travel(&start, &end, there).is_ok()) {
            return Ok(());
        }
        Err(ExecError::NoSandboxNetwork {
            reason: format!(
                "this machine's firewall does not forward packets of the interface {} (dockerd sets the policy of iptables' \
                 FORWARD to DROP, for example); let lapstrake+ pass, as in `iptables -I FORWARD -i lapstrake+ -j ACCEPT` and \
                 `iptables -I FORWARD -o lapstrake+ -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT` (where docker runs, in \
                 the chain DOCKER-USER), and restart",
                self.name
            ),
        })
    }
}

/// There and back.
fn travel(start: &UdpSocket, end: &UdpSocket, there: SocketAddr) -> io::Result<()> {
    let mut byte = [0];
    start.send_to(&[1], there)?;
    let (_, sender) = end.recv_from(&mut byte)?;
    end.send_to(&[2], sender)?;
    start.recv_from(&mut byte)?;
    Ok(())
}

/// Waits for an interface. Of two that are connected the one that is set up last is ready at once; the kernel does the rest for the
/// other a moment later, and until then drops what that is to send.
fn await_link(is_ready: impl Fn() -> io::Result<bool>) -> Result<(), ExecError> {
    for _ in 0..LINK_STEPS {
        if is_ready().doing(|| "look at an interface")? {
            return Ok(());
        }
        std::thread::sleep(LINK_STEP);
    }
    Err(io::Error::from(io::ErrorKind::TimedOut)).doing(|| "wait for an interface")
}

impl Drop for Switch {
    fn drop(&mut self) {
        // The kernel does it too, a moment later.
        let mut requests = Requests::default();
        requests.remove_link(self.interface);
        let _ = self.host.ask(&requests);
    }
}

/// Removes an interface when dropped.
struct Removal<'a> {
    host: &'a Connection,
    name: &'a str,
}

impl Drop for Removal<'_> {
    fn drop(&mut self) {
        // What stays is swept when the name is used again, and goes with the namespace at its other end.
        let _ = sweep(self.host, self.name);
    }
}

/// Removes what a killed daemon of this name may have left for a moment: as long as its last container lives.
fn sweep(host: &Connection, name: &str) -> Result<(), ExecError> {
    let link = host.link(name).doing(|| "list interfaces")?;
    let Some(link) = link.filter(|link| link.kind == "veth") else { return Ok(()) };
    let mut requests = Requests::default();
    requests.remove_link(link.index);
    match host.ask(&requests) {
        Err(error) if error.raw_os_error() == Some(libc::ENODEV) => Ok(()),
        done => done.doing(|| format!("remove interface {name}")),
    }
}

/// A subnet that nobody uses, and the claim that keeps other daemons from choosing it.
fn choose(
    host: &Connection,
    wanted: Option<Subnet>,
    avoid: &[IpAddr],
) -> Result<(Subnet, OwnedFd), ExecError> {
    let taken = host.taken().doing(|| "list routes")?;
    let is_free = |subnet: Subnet| {
        !taken.iter().any(|range| range.overlaps(subnet))
            && !avoid.iter().any(|ip| matches!(ip, IpAddr::V4(ip) if subnet.contains(*ip)))
    };
    if let Some(subnet) = wanted {
        let used = || ExecError::NoSandboxNetwork { reason: format!("the subnet {subnet} is in use") };
        if !is_free(subnet) {
            return Err(used());
        }
        let claim =
            claim(&subnet.to_string()).doing(|| format!("claim the subnet {subnet}"))?.ok_or_else(used)?;
        return Ok((subnet, claim));
    }
    for subnet in Subnet::candidates().filter(|subnet| is_free(*subnet)) {
        if let Some(claim) = claim(&subnet.to_string()).doing(|| format!("claim the subnet {subnet}"))? {
            return Ok((subnet, claim));
        }
    }
    Err(ExecError::NoSandboxNetwork {
        reason:
            "every subnet that sandboxes may have is in use on this machine; configure one as bridgeSubnet"
                .to_owned(),
    })
}

/// Binds a name that a network namespace has once, and that is free again when its socket is closed: a lock between daemons.
fn claim(what: &str) -> io::Result<Option<OwnedFd>> {
    let name = format!("lapstrake-network/{what}");
    let socket =
        rustix::net::socket_with(AddressFamily::UNIX, SocketType::DGRAM, SocketFlags::CLOEXEC, None)?;
    match rustix::net::bind(&socket, &SocketAddrUnix::new_abstract_name(name.as_bytes())?) {
        Ok(()) => Ok(Some(socket)),
        Err(rustix::io::Errno::ADDRINUSE) => Ok(None),
        Err(errno) => Err(errno.into()),
    }
}

/// Has the host pass packets on. It is a switch of the whole machine, which stays on, as dockerd's, podman's and libvirt's.
fn forward_packets() -> Result<(), ExecError> {
    const FILE: &str = "/proc/sys/net/ipv4/ip_forward";
    let now = fs::read_to_string(FILE).doing(|| format!("read {FILE}"))?;
    if now.trim() == "0" {
        fs::write(FILE, "1").doing(|| format!("write {FILE}"))?;
        tracing::info!("turned IPv4 forwarding on (net.ipv4.ip_forward = 1), which sandboxes need");
    }
    Ok(())
}

/// No IPv6 on an interface, or on those to come (`default`): there is no NAT for it, and the host's services would be open to it
/// past the table. Loopback keeps `::1`. What a kernel without IPv6 has not, need not be turned off.
fn without_ipv6(interface: &str) -> Result<(), ExecError> {
    let file = format!("/proc/sys/net/ipv6/conf/{interface}/disable_ipv6");
    match fs::write(&file, "1") {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        done => done.doing(|| format!("write {file}")),
    }
}

fn connect() -> Result<Connection, ExecError> {
    Connection::to_routing().doing(|| "open netlink socket")
}

/// Moves this thread into a new network namespace.
fn new_namespace() -> Result<OwnedFd, ExecError> {
    nix::sched::unshare(CloneFlags::CLONE_NEWNET).doing(|| "make network namespace")?;
    own_namespace()
}

fn own_namespace() -> Result<OwnedFd, ExecError> {
    let flags = OFlags::RDONLY | OFlags::CLOEXEC;
    rustix::fs::openat(CWD, "/proc/thread-self/ns/net", flags, Mode::empty())
        .doing(|| "open network namespace")
}

fn enter(namespace: BorrowedFd<'_>) -> Result<(), ExecError> {
    rustix::thread::move_into_link_name_space(namespace, Some(LinkNameSpaceType::Network))
        .doing(|| "enter network namespace")
}

/// Locally administered; what has an address has one of these, so that nobody needs to ask.
fn mac_of(address: Ipv4Addr) -> Mac {
    let [a, b, c, d] = address.octets();
    [0x02, 0x4c, a, b, c, d]
}

/// A bridge's ports have addresses that nobody sends to.
fn mac_of_port(number: i32) -> Mac {
    let [a, b, c, d] = number.to_be_bytes();
    [0x02, 0x50, a, b, c, d]
}

/// The resolver's sockets, where sandboxes find them.
pub(super) fn listen(address: Ipv4Addr) -> io::Result<(UdpSocket, TcpListener)> {
    const PORT: u16 = 53;
    let address = SocketAddrV4::new(address, PORT);
    let (udp, tcp) = (UdpSocket::bind(address)?, TcpListener::bind(address)?);
    udp.set_nonblocking(true)?;
    tcp.set_nonblocking(true)?;
    Ok((udp, tcp))
}
