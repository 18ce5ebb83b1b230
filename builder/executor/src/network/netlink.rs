//! Netlink, as far as it is needed here: requests that are acknowledged, and dumps (RFC 3549, linux/netlink.h).

use std::{
    io,
    os::fd::{AsFd, OwnedFd},
    time::Duration,
};

use rustix::net::{AddressFamily, Protocol, RecvFlags, SendFlags, SocketFlags, SocketType};

const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
const NLM_F_REQUEST: u16 = 0x1;
const NLM_F_ACK: u16 = 0x4;
const NLM_F_DUMP: u16 = 0x300;
/// Replace what is there.
pub(super) const NLM_F_REPLACE: u16 = 0x100;
/// Fail when it is there.
pub(super) const NLM_F_EXCL: u16 = 0x200;
/// Make it.
pub(super) const NLM_F_CREATE: u16 = 0x400;
/// On attributes that hold attributes.
const NLA_F_NESTED: u16 = 0x8000;
const HEADER: usize = 16;
/// The kernel answers at once; whoever does not is no kernel.
const TIMEOUT: Duration = Duration::from_secs(10);
/// The kernel cuts its dumps into packets of at most this.
const MAX_PACKET: usize = 64 << 10;
/// More packets than this no dump has.
const MAX_PACKETS: usize = 4096;

/// Requests to be sent together, and to be acknowledged one by one.
#[derive(Debug, Default)]
pub(super) struct Requests {
    bytes: Vec<u8>,
    /// Where the last message begins.
    last: usize,
    acknowledged: usize,
}

impl Requests {
    /// Begins a message of `kind` with its fixed part; it is acknowledged.
    pub(super) fn begin(&mut self, kind: u16, flags: u16, fixed: &[u8]) -> &mut Self {
        self.acknowledged += 1;
        self.begin_silent(kind, flags | NLM_F_ACK, fixed)
    }

    /// Begins a message that the kernel says nothing about.
    pub(super) fn begin_silent(&mut self, kind: u16, flags: u16, fixed: &[u8]) -> &mut Self {
        self.last = self.bytes.len();
        self.bytes.extend(0u32.to_ne_bytes());
        self.bytes.extend(kind.to_ne_bytes());
        self.bytes.extend((flags | NLM_F_REQUEST).to_ne_bytes());
        // Sequence number (answers come in order) and port (the kernel knows).
        self.bytes.extend([0; 8]);
        self.bytes.extend(fixed);
        self.pad();
        self.close(self.last, 4);
        self
    }

    /// Adds an attribute to the last message.
    pub(super) fn put(&mut self, kind: u16, value: &[u8]) -> &mut Self {
        self.nest_as(kind, |message| message.bytes.extend(value))
    }

    /// The same, for text that the kernel wants to end with NUL.
    pub(super) fn put_text(&mut self, kind: u16, text: &str) -> &mut Self {
        self.nest_as(kind, |message| {
            message.bytes.extend(text.as_bytes());
            message.bytes.push(0);
        })
    }

    /// Adds an attribute that holds attributes.
    pub(super) fn nest(&mut self, kind: u16, content: impl FnOnce(&mut Self)) -> &mut Self {
        self.nest_as(kind | NLA_F_NESTED, content)
    }

    /// Adds bytes that are no attribute (a header within one).
    pub(super) fn raw(&mut self, bytes: &[u8]) {
        self.bytes.extend(bytes);
    }

    fn nest_as(&mut self, kind: u16, content: impl FnOnce(&mut Self)) -> &mut Self {
        let start = self.bytes.len();
        self.bytes.extend([0; 2]);
        self.bytes.extend(kind.to_ne_bytes());
        content(self);
        self.close(start, 2);
        self.pad();
        self.close(self.last, 4);
        self
    }

    /// Writes the length of what began at `start` into its first `width` bytes.
    fn close(&mut self, start: usize, width: usize) {
        let length = self.bytes.len() - start;
        if width == 2 {
            let length = u16::try_from(length).expect("attributes of ours are a few bytes");
            self.bytes[start..start + 2].copy_from_slice(&length.to_ne_bytes());
        } else {
            let length = u32::try_from(length).expect("messages of ours are a few bytes");
            self.bytes[start..start + 4].copy_from_slice(&length.to_ne_bytes());
        }
    }

    fn pad(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }
}

/// What a dump has found: the fixed part and the attributes.
#[derive(Debug)]
pub(super) struct Found {
    bytes: Vec<u8>,
    fixed: usize,
}

impl Found {
    /// `N` bytes of the fixed part, zeros when it is shorter.
    pub(super) fn fixed<const N: usize>(&self, at: usize) -> [u8; N] {
        self.bytes.get(at..at + N).and_then(|bytes| bytes.try_into().ok()).unwrap_or([0; N])
    }

    /// The value of an attribute.
    pub(super) fn attribute(&self, kind: u16) -> Option<&[u8]> {
        attribute(self.bytes.get(self.fixed..)?, kind)
    }
}

/// The value of the first attribute of a kind among several.
pub(super) fn attribute(mut bytes: &[u8], kind: u16) -> Option<&[u8]> {
    while bytes.len() >= 4 {
        let length = usize::from(u16::from_ne_bytes([bytes[0], bytes[1]]));
        let found = u16::from_ne_bytes([bytes[2], bytes[3]]) & !NLA_F_NESTED;
        let value = bytes.get(4..length)?;
        if found == kind {
            return Some(value);
        }
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
    }
    None
}

/// A connection to the kernel. It belongs to the network namespace of the thread that opened it, also when other threads use it.
#[derive(Debug)]
pub(super) struct Connection(OwnedFd);

impl Connection {
    /// About interfaces, addresses and routes.
    pub(super) fn to_routing() -> io::Result<Self> {
        // NETLINK_ROUTE is 0.
        Self::open(None)
    }

    /// About tables of packet filters.
    pub(super) fn to_netfilter() -> io::Result<Self> {
        Self::open(Some(rustix::net::netlink::NETFILTER))
    }

    fn open(protocol: Option<Protocol>) -> io::Result<Self> {
        let socket = rustix::net::socket_with(
            AddressFamily::NETLINK,
            SocketType::RAW,
            SocketFlags::CLOEXEC,
            protocol,
        )?;
        rustix::net::sockopt::set_socket_timeout(
            &socket,
            rustix::net::sockopt::Timeout::Recv,
            Some(TIMEOUT),
        )?;
        Ok(Self(socket))
    }

    /// Sends requests and waits until all are answered; the first refusal is the error.
    pub(super) fn ask(&self, requests: &Requests) -> io::Result<()> {
        self.send(&requests.bytes)?;
        let mut first = Ok(());
        let mut left = requests.acknowledged;
        while left > 0 {
            let packet = self.receive()?;
            for message in messages(&packet) {
                if message.kind == NLMSG_ERROR {
                    left = left.saturating_sub(1);
                    if let Some(error) = message.error()
                        && first.is_ok()
                    {
                        first = Err(error);
                    }
                }
            }
        }
        first
    }

    /// Lists things; `fixed` is the request's fixed part, as long as that of the answers is.
    pub(super) fn dump(&self, kind: u16, fixed: &[u8]) -> io::Result<Vec<Found>> {
        let mut request = Requests::default();
        request.begin_silent(kind, NLM_F_DUMP, fixed);
        self.send(&request.bytes)?;
        let mut found = Vec::new();
        for _ in 0..MAX_PACKETS {
            let packet = self.receive()?;
            for message in messages(&packet) {
                match message.kind {
                    NLMSG_DONE => return Ok(found),
                    NLMSG_ERROR => return Err(message.error().unwrap_or_else(bad_answer)),
                    _ => found.push(Found { bytes: message.payload.to_vec(), fixed: fixed.len() }),
                }
            }
        }
        Err(bad_answer())
    }

    /// Asks for one thing.
    pub(super) fn get(&self, kind: u16, fixed: &[u8]) -> io::Result<Found> {
        let mut request = Requests::default();
        request.begin_silent(kind, 0, fixed);
        self.send(&request.bytes)?;
        let packet = self.receive()?;
        let message = messages(&packet).into_iter().next().ok_or_else(bad_answer)?;
        match message.kind {
            NLMSG_ERROR => Err(message.error().unwrap_or_else(bad_answer)),
            _ => Ok(Found { bytes: message.payload.to_vec(), fixed: fixed.len() }),
        }
    }

    fn send(&self, bytes: &[u8]) -> io::Result<()> {
        rustix::io::retry_on_intr(|| rustix::net::send(&self.0, bytes, SendFlags::NOSIGNAL))?;
        Ok(())
    }

    fn receive(&self) -> io::Result<Vec<u8>> {
        let mut packet = vec![0; MAX_PACKET];
        let (length, _) = rustix::io::retry_on_intr(|| {
            rustix::net::recv(&self.0, packet.as_mut_slice(), RecvFlags::empty())
        })?;
        packet.truncate(length);
        if packet.is_empty() { Err(bad_answer()) } else { Ok(packet) }
    }
}

impl AsFd for Connection {
    fn as_fd(&self) -> std::os::fd::BorrowedFd<'_> {
        self.0.as_fd()
    }
}

fn bad_answer() -> io::Error {
    io::Error::from_raw_os_error(libc::EBADMSG)
}

struct Message<'a> {
    kind: u16,
    payload: &'a [u8],
}

impl Message<'_> {
    /// The refusal in an `NLMSG_ERROR`; `None` in an acknowledgement.
    fn error(&self) -> Option<io::Error> {
        let code = self.payload.get(..4).and_then(|bytes| bytes.try_into().ok()).map(i32::from_ne_bytes)?;
        (code != 0).then(|| io::Error::from_raw_os_error(code.saturating_neg()))
    }
}

/// The messages in a packet. What is cut off is left out.
fn messages(mut packet: &[u8]) -> Vec<Message<'_>> {
    let mut all = Vec::new();
    while let Some(header) = packet.get(..HEADER) {
        let length = u32::from_ne_bytes([header[0], header[1], header[2], header[3]]) as usize;
        let Some(payload) = packet.get(HEADER..length) else { break };
        all.push(Message { kind: u16::from_ne_bytes([header[4], header[5]]), payload });
        packet = packet.get(length.next_multiple_of(4)..).unwrap_or_default();
    }
    all
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn attributes_are_padded_and_lengths_are_those_without_padding() {
        let mut requests = Requests::default();
        requests.begin(16, NLM_F_CREATE, &[1, 2]).put_text(3, "ab").nest(18, |inner| {
            inner.put(1, &[9]);
        });
        let bytes = &requests.bytes;
        assert_eq!(bytes.len(), 16 + 4 + 8 + 4 + 8);
        assert_eq!(u32::from_ne_bytes(bytes[..4].try_into().unwrap()) as usize, bytes.len());
        assert_eq!(u16::from_ne_bytes(bytes[20..22].try_into().unwrap()), 7);
        assert_eq!(attribute(&bytes[20..], 3), Some(&b"ab\0"[..]));
        let nested = attribute(&bytes[20..], 18).unwrap();
        assert_eq!(attribute(nested, 1), Some(&[9][..]));
        assert_eq!(attribute(nested, 2), None);
    }

    #[test]
    fn the_kernel_lists_its_loopback() {
        let connection = Connection::to_routing().unwrap();
        let links = connection.dump(18, &[0; 16]).unwrap();
        assert!(links.iter().any(|link| link.attribute(3) == Some(b"lo\0")), "{links:?}");
        let mut nonsense = Requests::default();
        nonsense.begin(17, 0, &[0; 16]).put_text(3, "lapstrakenone");
        assert_eq!(connection.ask(&nonsense).unwrap_err().raw_os_error(), Some(libc::ENODEV));
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_without_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            for message in messages(&bytes) {
                let _ = message.error();
                let _ = attribute(message.payload, 3);
            }
        }
    }
}
