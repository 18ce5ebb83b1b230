//! Sandboxes' network. Each case has a machine of its own: a network namespace, whose only way out leads to another one.
//!
//! ```text
//!   machine (this thread and its children)                       outside (a thread that serves)
//!   127.0.0.1 …   out 203.0.113.1 ─────────────────────────────── in 203.0.113.2: HTTP, says who asks
//!   sandboxes
//! ```

use std::{
    io::{Read, Write},
    net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket},
    os::fd::AsRawFd,
    process::{Command, Stdio},
    sync::mpsc as std_mpsc,
};

use lapstrake_builder_executor::{
    DefaultNetwork, DnsConfig, ExecError, ExtraHost, Helper, HelperOptions, NetworkMode, NetworkOptions,
    OutputSink, ProcessIo, ProcessSpec, SecurityMode,
};
use nix::sched::{CloneFlags, unshare};
use tokio_util::sync::CancellationToken;

use crate::harness::{Kind, Sandbox, eventually, executor_of, options, rootfs};

const OUTSIDE: &str = "203.0.113.2";
const MACHINE: &str = "203.0.113.1";

/// Runs a case on a machine of its own.
pub(crate) fn on_machine(kind: Kind, case: impl AsyncFnOnce(Kind)) {
    // A killed owner runs in the machine of the case that has started it.
    if std::env::var_os(OWNER_DIR).is_none() {
        unshare(CloneFlags::CLONE_NEWNET).unwrap();
        ip("link set lo up");
        ip("link add out type veth peer name in");
        let (to, from) = std_mpsc::channel();
        std::thread::spawn(move || {
            unshare(CloneFlags::CLONE_NEWNET).unwrap();
            let namespace = std::fs::File::open("/proc/thread-self/ns/net").unwrap();
            to.send(namespace).unwrap();
            std::thread::park();
            ip("link set lo up");
            ip(&format!("addr add {OUTSIDE}/24 dev in"));
            ip("link set in up");
            serve(TcpListener::bind((OUTSIDE, 80)).unwrap());
            to.send(std::fs::File::open("/dev/null").unwrap()).unwrap();
            loop {
                std::thread::park();
            }
        })
        .thread()
        .clone()
        .pipe(|thread| {
            let namespace = from.recv().unwrap();
            ip(&format!("link set in netns /proc/{}/fd/{}", std::process::id(), namespace.as_raw_fd()));
            ip(&format!("addr add {MACHINE}/24 dev out"));
            ip("link set out up");
            ip(&format!("route add default via {OUTSIDE}"));
            thread.unpark();
            from.recv().unwrap();
        });
    }
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    runtime.block_on(case(kind));
}

trait Pipe: Sized {
    fn pipe<T>(self, f: impl FnOnce(Self) -> T) -> T {
        f(self)
    }
}

impl Pipe for std::thread::Thread {}

/// Calls `ip` in the namespace of this thread.
#[track_caller]
fn ip(arguments: &str) -> String {
    output("ip", &arguments.split(' ').collect::<Vec<_>>())
}

#[track_caller]
fn output(program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program).args(arguments).output().unwrap();
    assert!(output.status.success(), "{program} {arguments:?}: {output:?}");
    String::from_utf8(output.stdout).unwrap()
}

/// Answers HTTP requests with the address of who asks.
fn serve(listener: TcpListener) {
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let mut request = [0; 1024];
            let _ = stream.read(&mut request);
            let body = stream.peer_addr().unwrap().ip().to_string();
            let _ = write!(stream, "HTTP/1.0 200 OK\r\nContent-Length: {}\r\n\r\n{body}", body.len());
        }
    });
}

/// A script that prints what an HTTP server answers. (Busybox's own `wget` looks up names in a way that static programs cannot.)
fn get(address: &str, port: u16) -> String {
    format!("printf 'GET / HTTP/1.0\\r\\n\\r\\n' | nc -w5 {address} {port} | tail -n1")
}

/// An executor whose default is a sandbox.
fn sandboxed(kind: Kind) -> (Sandbox, Helper) {
    with_network(kind, NetworkOptions::default())
}

pub(crate) fn with_network(kind: Kind, network: NetworkOptions) -> (Sandbox, Helper) {
    let dir = rootfs();
    let owner = dir.path().to_str().unwrap().to_owned();
    let helper = Helper::start(HelperOptions { network: NetworkOptions { owner, ..network }, ..options() });
    let helper = helper.unwrap();
    let sandbox = Sandbox { dir, executor: executor_of(kind, helper.clone()) };
    (sandbox, helper)
}

pub(crate) fn required() -> NetworkOptions {
    NetworkOptions { default: DefaultNetwork::Sandbox, ..NetworkOptions::default() }
}

/// What of ours the machine has.
fn of_ours() -> Vec<String> {
    let links = ip("-o link");
    let tables = output("nft", &["list", "tables"]);
    links.lines().chain(tables.lines()).filter(|line| line.contains("lapstrake")).map(String::from).collect()
}

pub(crate) async fn a_sandbox_reaches_the_outside_by_the_machines_address(kind: Kind) {
    let (sandbox, _helper) = with_network(kind, required());
    assert_eq!(of_ours(), [] as [&str; 0], "nothing is made before it is needed");
    let script = format!(
        "readlink /proc/self/ns/net; ls /sys/class/net | sort; {}; echo;
         ip -4 -o addr show eth0; cat /proc/sys/net/ipv4/ip_unprivileged_port_start",
        get(OUTSIDE, 80)
    );
    let output = sandbox.script(&script).await.ok();
    let [namespace, eth0, lo, seen, address, port] = output.lines().collect::<Vec<_>>()[..] else {
        panic!("{output}");
    };
    assert_ne!(namespace, std::fs::read_link("/proc/thread-self/ns/net").unwrap().to_str().unwrap());
    assert_eq!((eth0, lo, seen, port), ("eth0", "lo", MACHINE, "0"));
    assert!(address.contains("inet 10.201.0.3/22"), "{address}");
    // Another run has another namespace and another address.
    let output = sandbox.script("readlink /proc/self/ns/net; ip -4 -o addr show eth0").await.ok();
    assert!(!output.contains(namespace) && output.contains("10.201.0.4/22"), "{output}");
    for (mode, expected) in [(NetworkMode::Host, "out\n"), (NetworkMode::None, "")] {
        let mut spec = sandbox.sh("ls /sys/class/net | grep out");
        spec.network = mode;
        assert_eq!(sandbox.run(spec).await.stdout, expected);
    }
}

pub(crate) async fn a_sandbox_is_kept_from_the_machines_loopback(kind: Kind) {
    let (sandbox, helper) = with_network(kind, required());
    serve(TcpListener::bind(("127.0.0.1", 8080)).unwrap());
    let gateway = helper.network().host_address().await;
    let script = |address: &str| get(address, 8080).replace("-w5", "-w1");
    for address in ["127.0.0.1", &gateway.to_string()] {
        let output = sandbox.script(&script(address)).await;
        assert!(!output.stdout.contains('.'), "{output:?}");
    }
    // Not even where the machine would take such packets and the process may send them.
    std::fs::write("/proc/sys/net/ipv4/conf/all/route_localnet", "1").unwrap();
    let detour = "echo 1 > /proc/sys/net/ipv4/conf/all/route_localnet
         ip addr del 127.0.0.1/8 dev lo; ip route add 127.0.0.1 via GATEWAY dev eth0 src $(ip -4 -o addr show eth0 | sed 's/.*inet \\([^/]*\\).*/\\1/')
         ip rule add pref 0 to 127.0.0.1 lookup main"
        .replace("GATEWAY", &gateway.to_string());
    let mut spec = sandbox.sh(&format!("{detour}; ip route get 127.0.0.1; {}", script("127.0.0.1")));
    spec.security = SecurityMode::Insecure;
    let output = sandbox.run(spec).await;
    assert!(output.stdout.contains("dev eth0"), "{output:?}");
    assert_eq!(output.stdout.lines().count(), 1, "{output:?}");
    // It would have worked.
    let table =
        ip("-o link").lines().find_map(|line| Some(format!("lapstrake{}", line.split_once("lapstrake")?.1)));
    assert!(output_counts_drops(&table.unwrap()));
}

/// Whether the table has the rule that the case above is about: its packets are dropped there.
fn output_counts_drops(interface: &str) -> bool {
    let name = interface.split(['@', ':']).next().unwrap();
    output("nft", &["list", "table", "ip", name]).contains("ip daddr 127.0.0.0/8 drop")
}

pub(crate) async fn sandboxes_are_kept_from_each_other(kind: Kind) {
    let (sandbox, _helper) = with_network(kind, required());
    let other = Sandbox { dir: rootfs(), executor: sandbox.executor };
    let script =
        "ip -4 -o addr show eth0 | sed 's/.*inet \\([^/]*\\).*/\\1/'; nc -ll -p 7000 -e /bin/echo here";
    let mut started = other.started(other.sh(script)).await;
    let address: SocketAddr = format!("{}:7000", started.first.trim()).parse().unwrap();
    // The machine reaches it, so that it could be reached.
    let mut heard = String::new();
    eventually("it listens", || match TcpStream::connect(address) {
        Ok(mut stream) => stream.read_to_string(&mut heard).is_ok(),
        Err(_) => false,
    })
    .await;
    assert_eq!(heard, "here\n");
    let dir = rootfs();
    let neighbour = |script: String, security| {
        let mut spec = ProcessSpec::new(crate::harness::overlay(dir.path()), ["/bin/sh", "-c", &script]);
        spec.env = vec!["PATH=/bin".to_owned()];
        spec.security = security;
        spec
    };
    let connect = format!("nc -w1 {} 7000 < /dev/null", address.ip());
    let run = |spec| crate::harness::run(&*other.executor, spec, CancellationToken::new());
    let output = run(neighbour(connect.clone(), SecurityMode::Sandbox)).await.unwrap();
    assert!(!output.stdout.contains("here"), "{output:?}");
    // By way of the machine it is no nearer.
    let detour = format!("ip route add {} via 10.201.0.1 dev eth0; {connect}", address.ip());
    let output = run(neighbour(detour, SecurityMode::Insecure)).await.unwrap();
    assert!(!output.stdout.contains("here"), "{output:?}");
    // Nor does it get what is the other's by taking its address.
    let thief = format!(
        "ip addr add {0}/22 dev eth0; arping -U -c2 -w2 -I eth0 {0} >/dev/null; nc -ll -p 7000 -e /bin/echo stolen & sleep 1; echo ready; wait",
        address.ip()
    );
    let mut spec = neighbour(thief, SecurityMode::Insecure);
    spec.id = lapstrake_builder_executor::RunId::random();
    let (to, mut lines) = tokio::sync::mpsc::channel(4);
    let io =
        ProcessIo { stdout: OutputSink::Channel(to), stderr: OutputSink::Discard, ..ProcessIo::default() };
    let cancel = CancellationToken::new();
    let stealing = other.executor.run(spec, io, cancel.clone());
    let check = async {
        assert_eq!(lines.recv().await.unwrap(), "ready\n");
        let mut heard = String::new();
        TcpStream::connect(address).unwrap().read_to_string(&mut heard).unwrap();
        assert_eq!(heard, "here\n");
        cancel.cancel();
    };
    let (end, ()) = tokio::join!(stealing, check);
    assert!(matches!(end, Err(ExecError::Cancelled(_))));
    started.cancel.cancel();
    assert!(matches!((&mut started.run).await, Err(ExecError::Cancelled(_))));
}

pub(crate) async fn a_sandbox_has_no_ipv6_but_loopback(kind: Kind) {
    let (sandbox, _helper) = with_network(kind, required());
    let output = sandbox.script("ip -6 -o addr; ping -c1 -w2 ::1 | grep -c 'bytes from'").await.ok();
    let lines: Vec<_> = output.lines().collect();
    assert!(lines.len() == 2 && lines[0].contains("::1/128") && lines[1] == "1", "{output}");
    let interface = of_ours().concat();
    let name = interface.split(": ").nth(1).unwrap().split('@').next().unwrap();
    assert_eq!(ip(&format!("-6 -o addr show {name}")), "");
}

/// Answers every question with 192.0.2.77, over UDP and over TCP.
fn name_server() {
    fn answer(query: &[u8]) -> Vec<u8> {
        let mut answer = query.to_vec();
        answer[2..4].copy_from_slice(&[0x81, 0x80]);
        let is_ipv4 = query.windows(4).any(|words| words == [0, 1, 0, 1]);
        answer[6..12].copy_from_slice(&[0, u8::from(is_ipv4), 0, 0, 0, 0]);
        if is_ipv4 {
            answer.extend([0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 9, 0, 4, 192, 0, 2, 77]);
        }
        answer
    }
    let udp = UdpSocket::bind(("127.0.0.1", 53)).unwrap();
    let tcp = TcpListener::bind(("127.0.0.1", 53)).unwrap();
    std::thread::spawn(move || {
        let mut query = [0; 512];
        while let Ok((length, client)) = udp.recv_from(&mut query) {
            udp.send_to(&answer(&query[..length]), client).unwrap();
        }
    });
    std::thread::spawn(move || {
        for stream in tcp.incoming() {
            let mut stream = stream.unwrap();
            let mut query = [0; 512];
            let length = stream.read(&mut query).unwrap();
            stream.write_all(&answer(&query[..length])).unwrap();
        }
    });
}

pub(crate) async fn names_are_asked_of_the_machines_own_resolver(kind: Kind) {
    name_server();
    let dns = DnsConfig {
        nameservers: vec!["127.0.0.1".to_owned()],
        search: vec!["corp.example".to_owned()],
        options: vec!["ndots:2".to_owned()],
    };
    let (sandbox, _helper) = with_network(kind, NetworkOptions { dns, ..required() });
    let output = sandbox.script("cat /etc/resolv.conf; nslookup registry.example").await.ok();
    assert!(output.starts_with("nameserver 10.201.0.2\nsearch corp.example\noptions ndots:2\n"), "{output}");
    assert!(output.contains("Address: 192.0.2.77"), "{output}");
    // A question of 18 bytes about "a", as DNS over TCP has it: its length, its number 7.
    let question = r"\000\022\000\007\001\000\000\001\000\000\000\000\000\000\001a\000\000\001\000\001";
    let script =
        format!("printf '{question}' | tail -c +3 | nc -w3 10.201.0.2 53 | od -An -tx1 | tr -d ' \\n'");
    let output = sandbox.script(&script).await.ok();
    assert!(output.starts_with("0007") && output.ends_with("c000024d"), "{output}");
    // What a run says itself goes before.
    let mut spec = sandbox.sh("cat /etc/resolv.conf");
    spec.dns.nameservers = vec!["192.0.2.53".to_owned()];
    assert_eq!(sandbox.run(spec).await.ok(), "nameserver 192.0.2.53\nsearch corp.example\noptions ndots:2\n");
    // The machine's network has the machine's resolver.
    let mut spec = sandbox.sh("head -1 /etc/resolv.conf");
    spec.network = NetworkMode::Host;
    assert_eq!(sandbox.run(spec).await.ok(), "nameserver 127.0.0.1\n");
}

pub(crate) async fn host_gateway_is_where_the_machine_is_reached(kind: Kind) {
    let (sandbox, helper) = with_network(kind, required());
    serve(TcpListener::bind((Ipv4Addr::UNSPECIFIED, 8080)).unwrap());
    let find = "$(awk '/host.docker.internal/ {print $1}' /etc/hosts)";
    let mut spec = sandbox.sh(&get(find, 8080));
    let ip = helper.network().host_address().await.into();
    spec.extra_hosts = vec![ExtraHost { host: "host.docker.internal".to_owned(), ip }];
    assert_eq!(sandbox.run(spec).await.ok(), "10.201.0.3");
}

pub(crate) async fn many_at_once_have_addresses_of_their_own(kind: Kind) {
    let (sandbox, _helper) = with_network(kind, required());
    let roots: Vec<_> = (0..12).map(|_| rootfs()).collect();
    let runs = roots.iter().map(|root| {
        let script = format!("{}; echo; ip -4 -o addr show eth0", get(OUTSIDE, 80));
        let mut spec = ProcessSpec::new(crate::harness::overlay(root.path()), ["/bin/sh", "-c", &script]);
        spec.env = vec!["PATH=/bin".to_owned()];
        crate::harness::run(&*sandbox.executor, spec, CancellationToken::new())
    });
    let mut addresses = std::collections::BTreeSet::new();
    for output in futures::future::join_all(runs).await {
        let output = output.unwrap().ok();
        let (seen, address) = output.split_once('\n').unwrap();
        assert_eq!(seen, MACHINE);
        addresses.insert(address.to_owned());
    }
    assert_eq!(addresses.len(), 12);
}

pub(crate) async fn a_sandbox_is_used_again_only_if_nothing_has_happened_in_it(kind: Kind) {
    let (sandbox, _helper) = with_network(kind, required());
    // Without a socket of its own: the kernel takes its time to free those of `ip`.
    let show = "grep -o '10.201.0.[1-9][0-9]*' /proc/net/fib_trie | sort -u";
    let run = async |script: &str, security| {
        let mut spec = sandbox.sh(&format!("{show}; {script}"));
        spec.security = security;
        sandbox.run(spec).await.stdout.lines().next().unwrap().to_owned()
    };
    assert_eq!(run("true", SecurityMode::Sandbox).await, "10.201.0.3");
    assert_eq!(run("exit 3", SecurityMode::Sandbox).await, "10.201.0.3", "one that failed has done nothing");
    assert_eq!(run("ping -c1 127.0.0.1", SecurityMode::Sandbox).await, "10.201.0.3");
    // That one used it. The next may change its network, and is believed nothing.
    assert_eq!(run("true", SecurityMode::Insecure).await, "10.201.0.4");
    let mut cancelled = sandbox.started(sandbox.sh(&format!("{show}; sleep 1000"))).await;
    assert_eq!(cancelled.first.trim(), "10.201.0.5");
    cancelled.cancel.cancel();
    assert!(matches!((&mut cancelled.run).await, Err(ExecError::Cancelled(_))));
    drop(cancelled);
    assert_eq!(run("true", SecurityMode::Sandbox).await, "10.201.0.6");
}

pub(crate) async fn nothing_of_the_network_stays(kind: Kind) {
    let (sandbox, helper) = with_network(kind, required());
    sandbox.script("true").await.ok();
    assert_eq!(of_ours().len(), 2, "one interface, one table: {:?}", of_ours());
    // Whoever reloads the machine's firewall does not take ours away.
    output("nft", &["flush", "ruleset"]);
    assert_eq!(of_ours().len(), 2);
    drop((sandbox, helper));
    eventually("all is gone", || of_ours().is_empty()).await;
}

/// Environment variable by which a test runs itself as a daemon to be killed.
const OWNER_DIR: &str = "LAPSTRAKE_TEST_NETWORK_OWNER";

pub(crate) async fn nothing_of_the_network_stays_after_kill(kind: Kind) {
    let owned = |dir: tempfile::TempDir| {
        let owner = dir.path().to_str().unwrap().to_owned();
        let network = NetworkOptions { owner, ..required() };
        let helper = Helper::start(HelperOptions { network, ..options() }).unwrap();
        Sandbox { dir, executor: executor_of(kind, helper) }
    };
    if let Some(dir) = std::env::var_os(OWNER_DIR) {
        let sandbox = owned(rootfs());
        let io = ProcessIo {
            stdout: OutputSink::Writer(Box::new(tokio::fs::File::create(dir).await.unwrap())),
            stderr: OutputSink::Discard,
            ..ProcessIo::default()
        };
        let end = sandbox.executor.run(sandbox.sh("echo ready; sleep 1000"), io, CancellationToken::new());
        panic!("ended: {:?}", end.await);
    }
    let dir = rootfs();
    let ready = dir.path().join("ready");
    let case =
        format!("networks::{}::nothing_of_the_network_stays_after_kill", format!("{kind:?}").to_lowercase());
    let mut owner = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", &case, "--nocapture"])
        .env(OWNER_DIR, &ready)
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    eventually("the process has started", || std::fs::metadata(&ready).is_ok_and(|file| file.len() > 0))
        .await;
    assert_eq!(of_ours().len(), 2);
    owner.kill().unwrap();
    owner.wait().unwrap();
    // The next one need not wait for that.
    let sandbox = owned(dir);
    assert_eq!(sandbox.script(&get(OUTSIDE, 80)).await.ok(), MACHINE);
    eventually("the killed one's is gone", || of_ours().len() == 2).await;
    drop(sandbox);
    eventually("all is gone", || of_ours().is_empty()).await;
}

pub(crate) async fn a_firewall_in_the_way_means_the_machines_network(kind: Kind) {
    output("iptables", &["-P", "FORWARD", "DROP"]);
    let host = std::fs::read_link("/proc/thread-self/ns/net").unwrap();
    let (sandbox, helper) = sandboxed(kind);
    assert_eq!(sandbox.script("readlink /proc/self/ns/net").await.ok().trim(), host.to_str().unwrap());
    assert_eq!(helper.network().host_address().await, Ipv4Addr::LOCALHOST);
    assert_eq!(of_ours(), [] as [&str; 0]);
    // Where a sandbox is wanted, the step fails and says what to do.
    let (sandbox, _helper) = with_network(kind, required());
    let error = sandbox.try_run(sandbox.sh("true")).await.unwrap_err();
    assert!(
        matches!(&error, ExecError::NoSandboxNetwork { reason } if reason.contains("iptables -I FORWARD -i lapstrake+ -j ACCEPT")),
        "{error}"
    );
    // What it says helps.
    output("iptables", &["-I", "FORWARD", "-i", "lapstrake+", "-j", "ACCEPT"]);
    let answers = "-I FORWARD -o lapstrake+ -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT";
    output("iptables", &answers.split(' ').collect::<Vec<_>>());
    let (sandbox, _helper) = with_network(kind, required());
    assert_eq!(sandbox.script(&get(OUTSIDE, 80)).await.ok(), MACHINE);
}

pub(crate) async fn a_subnet_in_use_is_not_taken(kind: Kind) {
    ip("addr add 10.201.1.9/32 dev out");
    ip(&format!("route add 10.201.4.0/24 via {OUTSIDE}"));
    let (sandbox, _helper) = sandboxed(kind);
    let output = sandbox.script("ip -4 -o addr show eth0").await.ok();
    assert!(output.contains("10.201.8.3/22"), "{output}");
    let of = |subnet: &str| {
        with_network(kind, NetworkOptions { subnet: Some(subnet.parse().unwrap()), ..required() })
    };
    let (sandbox, _helper) = of("10.201.1.0/24");
    let error = sandbox.try_run(sandbox.sh("true")).await.unwrap_err();
    assert!(error.to_string().contains("the subnet 10.201.1.0/24 is in use"), "{error}");
    let (sandbox, _helper) = of("192.168.77.0/24");
    let output = sandbox.script(&format!("ip -4 -o addr show eth0; {}", get(OUTSIDE, 80))).await.ok();
    assert!(output.contains("192.168.77.3/24") && output.ends_with(MACHINE), "{output}");
}

pub(crate) async fn two_daemons_have_networks_of_their_own(kind: Kind) {
    let (one, _one) = with_network(kind, required());
    let (two, _two) = with_network(kind, required());
    let script = format!("ip -4 -o addr show eth0 | grep -o '10.201.[0-9.]*/22'; {}", get(OUTSIDE, 80));
    let (first, second) = tokio::join!(one.script(&script), two.script(&script));
    let (first, second) = (first.ok(), second.ok());
    assert!(first.ends_with(MACHINE) && second.ends_with(MACHINE), "{first} {second}");
    let mut subnets = [first.lines().next().unwrap(), second.lines().next().unwrap()];
    subnets.sort_unstable();
    assert_eq!(subnets, ["10.201.0.3/22", "10.201.4.3/22"]);
}

pub(crate) async fn forwarding_is_turned_on(kind: Kind) {
    std::fs::write("/proc/sys/net/ipv4/ip_forward", "0").unwrap();
    let (sandbox, _helper) = with_network(kind, required());
    assert_eq!(sandbox.script(&get(OUTSIDE, 80)).await.ok(), MACHINE);
}
