//! Sockets that systemd passes (`sd_listen_fds(3)`).

use std::os::fd::{FromRawFd as _, OwnedFd, RawFd};

/// The first descriptor that systemd passes.
const FIRST: RawFd = 3;
/// More than this is not a unit file but a mistake.
const MOST: RawFd = 256;

/// The sockets passed to this process, by number; none when it was not started so.
///
/// Call it once, before anything else opens a file. They are closed on exec from then on, so that no process that is started
/// inherits them.
pub(crate) fn sockets() -> Vec<(u32, OwnedFd)> {
    let number = |name: &str| std::env::var(name).ok().and_then(|text| text.parse::<u32>().ok());
    // The variables may have been inherited by a process that they do not mean.
    if number("LISTEN_PID") != Some(std::process::id()) {
        return Vec::new();
    }
    let count = number("LISTEN_FDS").and_then(|count| RawFd::try_from(count).ok()).unwrap_or(0).min(MOST);
    (FIRST..FIRST + count).filter_map(|fd| Some((u32::try_from(fd).ok()?, take(fd)?))).collect()
}

#[allow(unsafe_code)]
fn take(fd: RawFd) -> Option<OwnedFd> {
    // SAFETY: `fcntl(F_GETFD)` touches no memory; it only says whether the descriptor is open.
    if unsafe { libc::fcntl(fd, libc::F_GETFD) } < 0 {
        return None;
    }
    // SAFETY: the descriptor is open, and by the protocol (LISTEN_PID is this process) it is ours alone: this runs once, before
    // anything else is opened, so no other owner of that number exists.
    let fd = unsafe { OwnedFd::from_raw_fd(fd) };
    rustix::io::fcntl_setfd(&fd, rustix::io::FdFlags::CLOEXEC).ok()?;
    Some(fd)
}
