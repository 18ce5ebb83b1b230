//! A machine's network for a test alone.
//!
//! ```text
//!   machine (the test's thread, and all that it starts)          outside (a thread)
//!   127.0.0.1 …   out 203.0.113.1 ────────────────────────────── in 203.0.113.2: HTTP, says who asks
//! ```

use std::{
    fs::File,
    io::{Read as _, Write as _},
    net::{Ipv4Addr, TcpListener},
    os::fd::AsRawFd as _,
    process::Command,
    sync::mpsc,
};

use nix::sched::{CloneFlags, unshare};

/// A network namespace with a way out. The thread that made it is in it, and so is whatever that starts from then on.
#[derive(Debug)]
pub struct Machine(());

impl Machine {
    /// Its own address towards the outside.
    pub const ADDRESS: &str = "203.0.113.1";
    /// A web server's outside.
    pub const OUTSIDE: &str = "203.0.113.2";

    /// Moves this thread into a new one.
    ///
    /// # Panics
    /// When it cannot be made; it takes root.
    pub fn enter() -> Self {
        unshare(CloneFlags::CLONE_NEWNET).expect("root may make network namespaces");
        let machine = Self(());
        machine.ip("link set lo up");
        machine.ip("link add out type veth peer name in");
        let (told, here) = mpsc::channel();
        let (connected, proceed) = mpsc::channel();
        std::thread::spawn(move || {
            unshare(CloneFlags::CLONE_NEWNET).expect("root may make network namespaces");
            told.send(File::open("/proc/thread-self/ns/net").expect("a thread has a namespace"))
                .expect("the test waits");
            proceed.recv().expect("the test goes on");
            run("ip", &["link", "set", "lo", "up"]);
            run("ip", &["addr", "add", &format!("{}/24", Self::OUTSIDE), "dev", "in"]);
            run("ip", &["link", "set", "in", "up"]);
            let address = Self::OUTSIDE.parse().expect("an address");
            serve(address, 80);
            drop(told);
            loop {
                std::thread::park();
            }
        });
        let namespace: File = here.recv().expect("the other thread tells");
        machine.ip(&format!("link set in netns /proc/{}/fd/{}", std::process::id(), namespace.as_raw_fd()));
        machine.ip(&format!("addr add {}/24 dev out", Self::ADDRESS));
        machine.ip("link set out up");
        machine.ip(&format!("route add default via {}", Self::OUTSIDE));
        connected.send(()).expect("the other thread waits");
        // It drops its end when it serves.
        here.recv().expect_err("nothing else is told");
        machine
    }

    /// Serves HTTP here: says who asks.
    pub fn serve(&self, address: Ipv4Addr, port: u16) {
        serve(address, port);
    }

    /// Calls `ip` with these words.
    pub fn ip(&self, words: &str) -> String {
        run("ip", &words.split(' ').collect::<Vec<_>>())
    }

    /// Has iptables drop what this machine is to pass on, as dockerd does.
    pub fn forward_nothing(&self) {
        crate::require("iptables", "iptables");
        run("iptables", &["-P", "FORWARD", "DROP"]);
    }

    /// Interfaces and tables of Lapstrake's.
    pub fn of_lapstrake(&self) -> Vec<String> {
        crate::require("nft", "nftables");
        let all = format!("{}{}", self.ip("-o link"), run("nft", &["list", "tables"]));
        all.lines().filter(|line| line.contains("lapstrake")).map(str::to_owned).collect()
    }
}

fn run(program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program).args(arguments).output().expect("it can be started");
    assert!(output.status.success(), "{program} {arguments:?}: {output:?}");
    String::from_utf8(output.stdout).expect("it writes text")
}

fn serve(address: Ipv4Addr, port: u16) {
    let listener = TcpListener::bind((address, port)).expect("the port is free");
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.expect("a connection");
            let _ = stream.read(&mut [0; 1024]);
            let body = stream.peer_addr().expect("it has a peer").ip().to_string();
            let _ = write!(stream, "HTTP/1.0 200 OK\r\nContent-Length: {}\r\n\r\n{body}", body.len());
        }
    });
}
