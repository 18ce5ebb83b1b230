//! Tells whether anything has happened in a network namespace.
//!
//! Whoever has no `CAP_NET_ADMIN` changes nothing of its configuration. What else can be left in it begins with a packet (connections that
//! wait for their end, learnt paths, neighbours) or is a socket whose descriptor got out. Without either it is as it was made.

use std::{fs::File, io, os::unix::fs::FileExt as _};

/// Longer than these files are with two interfaces.
const MAX_BYTES: usize = 4 << 10;

/// The counters of a namespace, and what they said at first.
#[derive(Debug)]
pub(super) struct Witness {
    /// Bytes and packets of each interface.
    interfaces: Counter,
    /// Sockets that somebody has.
    sockets: Counter,
}

impl Witness {
    /// Of the namespace of this thread. Its sockets now must be there as long as the witness is: the kernel takes its time to
    /// forget those that are closed.
    pub(super) fn summon() -> io::Result<Self> {
        // Further lines count memory of all namespaces.
        Ok(Self { interfaces: Counter::open("dev", usize::MAX)?, sockets: Counter::open("sockstat", 1)? })
    }

    /// Whether all is as it was; what cannot be read is not.
    pub(super) fn saw_nothing(&self) -> bool {
        [&self.interfaces, &self.sockets].iter().all(|counter| counter.is_as_at_first())
    }
}

/// The first lines of a file below `/proc/net`.
#[derive(Debug)]
struct Counter {
    file: File,
    lines: usize,
    at_first: Vec<u8>,
}

impl Counter {
    fn open(name: &str, lines: usize) -> io::Result<Self> {
        // It tells of the namespace in which it was opened, whoever reads it.
        let file = File::open(format!("/proc/thread-self/net/{name}"))?;
        let at_first = read(&file, lines)?;
        Ok(Self { file, lines, at_first })
    }

    fn is_as_at_first(&self) -> bool {
        read(&self.file, self.lines).is_ok_and(|now| now == self.at_first)
    }
}

/// What the file says now.
fn read(file: &File, lines: usize) -> io::Result<Vec<u8>> {
    let mut bytes = vec![0; MAX_BYTES];
    let mut length = 0;
    loop {
        match file.read_at(&mut bytes[length..], length as u64)? {
            0 => break,
            more => length += more,
        }
    }
    if length == MAX_BYTES {
        return Err(io::ErrorKind::FileTooLarge.into());
    }
    let end = bytes[..length].split_inclusive(|byte| *byte == b'\n').take(lines).map(<[u8]>::len).sum();
    bytes.truncate(end);
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use std::{net::UdpSocket, os::unix::net::UnixDatagram, process::Command};

    use nix::sched::{CloneFlags, unshare};

    use super::*;

    #[test]
    fn a_socket_that_is_left_is_seen_and_a_packet_for_ever() {
        unshare(CloneFlags::CLONE_NEWNET).unwrap();
        let namespace = File::open("/proc/thread-self/ns/net").unwrap();
        let witness = Witness::summon().unwrap();
        let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
        assert!(!witness.saw_nothing());
        drop(socket);
        // From wherever one looks.
        unshare(CloneFlags::CLONE_NEWNET).unwrap();
        assert!(witness.saw_nothing());
        let _elsewhere = UnixDatagram::unbound().unwrap();
        assert!(witness.saw_nothing());
        nix::sched::setns(&namespace, CloneFlags::CLONE_NEWNET).unwrap();
        let left = UnixDatagram::unbound().unwrap();
        assert!(!witness.saw_nothing());
        drop(left);
        assert!(witness.saw_nothing());
        // A packet is seen when its socket is gone, too.
        let sent = "ip link set lo up; ping -c1 127.0.0.1";
        assert!(Command::new("/bin/busybox").args(["sh", "-c", sent]).status().unwrap().success());
        let witness = Witness { sockets: Counter::open("sockstat", 0).unwrap(), ..witness };
        assert!(!witness.saw_nothing());
    }
}
