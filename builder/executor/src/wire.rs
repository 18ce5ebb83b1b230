//! Messages between the daemon, its helper and a container's first process: JSON in the packets of a
//! `SOCK_SEQPACKET` socket, with descriptors beside it.

use std::{
    io::{self, IoSlice, IoSliceMut},
    mem::MaybeUninit,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    path::PathBuf,
};

use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, SocketFlags, SocketType,
};
use serde::{Deserialize, Serialize, de::DeserializeOwned};

use crate::ExecError;

/// No packet is longer. Plans travel in a memfd.
const MAX_PACKET: usize = 32 << 10;
/// No packet carries more descriptors.
const MAX_FDS: usize = 5;
/// No plan is longer (arguments, environment and secrets are limited before).
pub(crate) const MAX_PLAN: u64 = 128 << 20;
/// Texts in packets are cut to this, so that they fit.
const MAX_TEXT: usize = 8 << 10;

/// Daemon to helper.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Request {
    /// Run a plan; descriptors: memfd with the plan, standard output, standard error; standard input, when the plan has one; the
    /// namespace of a sandbox's network, when the plan has that.
    Run { id: String },
    /// Run a further process in the container of `into`; descriptors: memfd with an [`crate::talk::Extra`], and streams as above.
    Join { id: String, into: String },
    /// Give a process a signal.
    Signal { id: String, signal: i32 },
    /// Ask the process to end.
    Terminate { id: String },
    /// Kill everything in its pid namespace.
    Kill { id: String },
}

/// Helper to daemon.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Reply {
    /// The helper is ready. Says what is missing for a list of allowed devices, and for bounds on all containers, if it is.
    Ready { without_devices: Option<String>, without_bounds: Option<String> },
    /// The helper cannot work here, and has ended.
    Refused { failure: Failure },
    /// The program has been started. Told where the plan asks for it.
    Started { id: String },
    /// The process has a terminal; descriptor: the daemon's side of it.
    Terminal { id: String },
    /// Nothing of the run is left.
    Ended { id: String, outcome: Outcome },
    /// Answer to [`Request::Terminate`]: whether the process may notice.
    Terminated { id: String, noticed: bool },
}

/// How a run ended.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Outcome {
    Exited { code: i32, signal: Option<i32>, oom_killed: bool },
    Failed(Failure),
}

/// A container's first process to the helper, before it becomes the user's program.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Report {
    /// Descriptor: the root file system's mount.
    Root,
    /// A path in the root file system that was made to mount on.
    Stub(String),
    /// Descriptor: the daemon's side of the process's terminal.
    Terminal,
    /// Descriptor: a pidfd of the container's first process, when the sender is not that.
    Container,
    /// The program has been started, by another than the sender.
    Started,
    /// Nothing was or will be run.
    Failed(Failure),
    /// How the program ended, when the sender is not the program itself.
    Status { code: i32, signal: Option<i32> },
}

/// [`ExecError`] as it crosses.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) enum Failure {
    Setup { step: String, errno: i32 },
    NoSuchUser { group: bool, name: String },
    Program { program: String, reason: String, code: i32 },
    Foreign { program: String, architecture: String, has_emulator: bool },
    Limit { limit: String, reason: String },
    Runtime { runtime: PathBuf, message: String },
    Exists,
    NotRunning,
    Died,
}

impl Failure {
    /// What the caller of `run` gets.
    pub(crate) fn into_error(self, id: &crate::RunId) -> ExecError {
        match self {
            Self::Setup { step, errno } => {
                ExecError::Setup { step, source: io::Error::from_raw_os_error(errno) }
            }
            Self::NoSuchUser { group, name } => ExecError::NoSuchUser {
                kind: if group { "group" } else { "user" },
                name,
                file: if group { "/etc/group" } else { "/etc/passwd" },
            },
            Self::Program { program, reason, code } => ExecError::Program { program, reason, code },
            Self::Foreign { program, architecture, has_emulator } => {
                ExecError::Foreign { program, architecture, has_emulator }
            }
            Self::Limit { limit, reason } => ExecError::Limit { limit, reason },
            Self::Runtime { runtime, message } => ExecError::Runtime { runtime, message },
            Self::Exists => ExecError::Exists(id.clone()),
            Self::NotRunning => ExecError::NotRunning(id.clone()),
            Self::Died => ExecError::Protocol("the container was killed before its program was started"),
        }
    }

    /// The same with long texts cut.
    fn cut(mut self) -> Self {
        let cut = |text: &mut String| {
            if text.len() > MAX_TEXT {
                text.truncate(text.floor_char_boundary(MAX_TEXT));
                text.push('…');
            }
        };
        match &mut self {
            Self::Setup { step, .. } => cut(step),
            Self::NoSuchUser { name, .. } => cut(name),
            Self::Foreign { program, architecture, .. } => {
                cut(program);
                cut(architecture);
            }
            Self::Program { program, reason, .. } => {
                cut(program);
                cut(reason);
            }
            Self::Limit { limit, reason } => {
                cut(limit);
                cut(reason);
            }
            Self::Runtime { message, .. } => cut(message),
            Self::Exists | Self::NotRunning | Self::Died => {}
        }
        self
    }
}

/// Says what was being done when a system call failed.
pub(crate) trait Step<T> {
    /// `step` is only made when there is an error.
    fn step<S: Into<String>>(self, step: impl FnOnce() -> S) -> Result<T, Failure>;
}

impl<T, E: Into<io::Error>> Step<T> for Result<T, E> {
    fn step<S: Into<String>>(self, step: impl FnOnce() -> S) -> Result<T, Failure> {
        self.map_err(|error| Failure::Setup {
            step: step().into(),
            errno: error.into().raw_os_error().unwrap_or(libc::EIO),
        })
    }
}

/// One end of a connection.
#[derive(Debug)]
pub(crate) struct Socket(OwnedFd);

impl Socket {
    /// Two connected ends, closed at exec.
    pub(crate) fn pair() -> io::Result<(Self, Self)> {
        let (a, b) =
            rustix::net::socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?;
        Ok((Self(a), Self(b)))
    }

    pub(crate) fn into_fd(self) -> OwnedFd {
        self.0
    }

    pub(crate) fn from_fd(fd: OwnedFd) -> Self {
        Self(fd)
    }

    /// Sends one message. Without `wait`, fails with `WouldBlock` rather than wait for room.
    pub(crate) fn send(
        &self,
        message: &impl Serialize,
        fds: &[BorrowedFd<'_>],
        wait: bool,
    ) -> io::Result<()> {
        let bytes = serde_json::to_vec(message)?;
        if bytes.len() > MAX_PACKET || fds.len() > MAX_FDS {
            return Err(io::Error::from_raw_os_error(libc::EMSGSIZE));
        }
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FDS))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        if !fds.is_empty() {
            let fits = control.push(SendAncillaryMessage::ScmRights(fds));
            debug_assert!(fits, "the buffer has room for MAX_FDS");
        }
        let flags = if wait { SendFlags::NOSIGNAL } else { SendFlags::NOSIGNAL | SendFlags::DONTWAIT };
        rustix::io::retry_on_intr(|| {
            rustix::net::sendmsg(&self.0, &[IoSlice::new(&bytes)], &mut control, flags)
        })?;
        Ok(())
    }

    /// Sends a failure, its texts cut to fit.
    pub(crate) fn send_failure(&self, failure: Failure) -> io::Result<()> {
        self.send(&Report::Failed(failure.cut()), &[], true)
    }

    /// Sends how a run ended.
    pub(crate) fn send_ended(&self, id: String, outcome: Outcome) -> io::Result<()> {
        let outcome = match outcome {
            Outcome::Failed(failure) => Outcome::Failed(failure.cut()),
            exited => exited,
        };
        self.send(&Reply::Ended { id, outcome }, &[], true)
    }

    /// Receives one message; `None` when the other end is closed. Without `wait`, fails with `WouldBlock`.
    pub(crate) fn receive<M: DeserializeOwned>(&self, wait: bool) -> io::Result<Option<(M, Vec<OwnedFd>)>> {
        let mut bytes = vec![0; MAX_PACKET];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FDS))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let mut flags = RecvFlags::CMSG_CLOEXEC;
        if !wait {
            flags |= RecvFlags::DONTWAIT;
        }
        let received = rustix::io::retry_on_intr(|| {
            rustix::net::recvmsg(&self.0, &mut [IoSliceMut::new(&mut bytes)], &mut control, flags)
        })?;
        let mut fds = Vec::new();
        for message in control.drain() {
            if let RecvAncillaryMessage::ScmRights(rights) = message {
                fds.extend(rights);
            }
        }
        if received.bytes == 0 {
            return Ok(None);
        }
        if received.flags.contains(ReturnFlags::TRUNC) || received.flags.contains(ReturnFlags::CTRUNC) {
            return Err(io::Error::from_raw_os_error(libc::EMSGSIZE));
        }
        Ok(Some((serde_json::from_slice(&bytes[..received.bytes])?, fds)))
    }
}

impl AsFd for Socket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}
