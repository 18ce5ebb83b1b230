//! A terminal in a container: made by the container's own devpts, so that its name means the same to everyone in there.

use std::{
    io,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
};

use rustix::{
    fs::{CWD, Mode, OFlags, ResolveFlags},
    termios::Winsize,
};

use super::fixed;
use crate::{
    WindowSize, sys,
    wire::{Failure, Report, Socket, Step},
};

/// include/uapi/linux/magic.h
const DEVPTS_SUPER_MAGIC: rustix::fs::FsWord = 0x1cd1;

/// Makes a terminal, which becomes this session's and the three standard streams, and hands its other side to the helper. The caller is
/// in the container's mount namespace.
pub(super) fn take(size: WindowSize, uid: u32, report: &Socket) -> Result<(), Failure> {
    let (master, slave) = open(size).step(|| "open a terminal")?;
    report.send(&Report::Terminal, &[master.as_fd()], true).step(|| "report the terminal")?;
    drop(master);
    attach(slave.as_fd()).step(|| "make the terminal this session's")?;
    // Else its user could not open it by name.
    let _ = fixed::give(slave.as_fd(), uid);
    Ok(())
}

/// Both sides. No name in the container is trusted: what is there has to be the multiplexer of a devpts (CVE-2025-52565), and the
/// other side is asked of it, not looked for.
fn open(size: WindowSize) -> io::Result<(OwnedFd, OwnedFd)> {
    let flags = OFlags::RDWR | OFlags::NOCTTY | OFlags::CLOEXEC;
    let path = "/dev/pts/ptmx";
    let master = rustix::fs::openat2(CWD, path, flags, Mode::empty(), ResolveFlags::NO_SYMLINKS)?;
    if rustix::fs::fstatfs(&master)?.f_type != DEVPTS_SUPER_MAGIC {
        return Err(io::Error::from_raw_os_error(libc::ENOTTY));
    }
    let slave = sys::terminal_of(master.as_fd())?;
    resize(master.as_fd(), size)?;
    Ok((master, slave))
}

fn attach(slave: BorrowedFd<'_>) -> io::Result<()> {
    rustix::process::ioctl_tiocsctty(slave)?;
    nix::unistd::dup2_stdin(slave)?;
    nix::unistd::dup2_stdout(slave)?;
    nix::unistd::dup2_stderr(slave)?;
    Ok(())
}

/// Sets the size of a terminal, by either side.
pub(crate) fn resize(terminal: BorrowedFd<'_>, size: WindowSize) -> io::Result<()> {
    let size = Winsize { ws_row: size.rows, ws_col: size.columns, ws_xpixel: 0, ws_ypixel: 0 };
    Ok(rustix::termios::tcsetwinsize(terminal, size)?)
}
