//! An external OCI runtime's guardian.
//!
//! A runtime leaves things in the host's view when it is killed. So it runs inside a mount and a pid namespace of its own, under
//! this process: the snapshot is mounted in there, bundle and runtime state are in a file system in memory in there, and
//! when this process (pid 1 of that namespace) ends, the kernel ends the runtime and the container with it.
//!
//! `create` and `start` are separate calls: whether the runtime or the program failed is then never in doubt, and the container,
//! an orphan of `create`, becomes this process's child, whose exact status is known.

use std::{
    io,
    os::{
        fd::{AsFd, OwnedFd},
        unix::net::UnixListener,
    },
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use nix::{
    sys::{
        signal::{SigSet, Signal},
        wait::{WaitPidFlag, WaitStatus, waitpid},
    },
    unistd::Pid,
};
use rustix::{
    fs::{CWD, Mode, OFlags},
    mount::{MountAttrFlags, MoveMountFlags, UnmountFlags},
    net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags},
};

use super::{
    cgroup::Hierarchies,
    container::{self, Streams},
    mounts, notices_sigterm_of,
    rootfs::{self, BareRoot, Scratch},
    terminal,
};
use crate::{
    bundle::{self, BundleMount},
    plan::{Plan, Runtime},
    sys,
    wire::{Failure, Report, Socket, Step},
};

/// Where the working area goes in this namespace: a directory that every host has and no runtime is in.
const AREA: &str = "/tmp";

/// Runs the container to its end and exits.
pub(super) fn main(
    plan: &Plan,
    runtime: &Runtime,
    streams: &Streams,
    report: &Socket,
    hierarchies: &Hierarchies,
) -> ! {
    let result =
        prepare(plan, streams, report, hierarchies).and_then(|()| supervise(plan, runtime, streams, report));
    // When the helper is gone there is nobody to tell.
    let _ = match result {
        Ok((code, signal)) => report.send(&Report::Status { code, signal }, &[], true),
        Err(failure) => report.send_failure(failure),
    };
    sys::exit_now(0)
}

/// Mounts everything and writes the bundle.
fn prepare(
    plan: &Plan,
    streams: &Streams,
    report: &Socket,
    hierarchies: &Hierarchies,
) -> Result<(), Failure> {
    container::die_with_helper(report)?;
    // The container has the runtime's: no name leads to this one.
    container::enter_network(streams)?;
    container::ordinary_oom_score()?;
    sys::reset_signals();
    // Kept until asked for, and never acted on by default.
    supervised_signals().thread_block().step(|| "block signals")?;
    rustix::process::setsid().step(|| "make session")?;
    sys::close_on_exec_from(3).step(|| "close descriptors")?;
    let mut scratch = Scratch::new()?;
    let bare = BareRoot::attach(plan, &scratch, report)?;
    let identity = container::identify(plan, &bare)?;
    let sources = rootfs::sources(plan, &mut scratch, &streams.overlays)?;
    bare.populate(plan, &sources, &identity, report)?;
    let mut bundle_mounts = Vec::with_capacity(sources.len());
    for (number, source) in sources.iter().enumerate() {
        let name = format!("source{number}");
        place(&scratch, &name, source)?;
        bundle_mounts.push(BundleMount {
            target: source.target.clone(),
            source: Path::new(AREA).join(name),
            flags: source.flags,
        });
    }
    for stream in [&streams.stdout, &streams.stderr] {
        let _ = super::fixed::give(stream.as_fd(), identity.uid);
    }
    // What the daemon lacks it cannot give, and a runtime that is told to fails.
    let mut plan = plan.clone();
    plan.caps =
        plan.caps.and(rustix::thread::capabilities(None).step(|| "read capabilities")?.permitted.bits());
    let config = bundle::config(&plan, &identity, &Path::new(AREA).join("root"), &bundle_mounts)
        .map_err(io::Error::other)
        .step(|| "describe the container to the runtime")?;
    let write = || -> io::Result<()> {
        for name in ["bundle", "state"] {
            rustix::fs::mkdirat(scratch.fd(), name, Mode::from_raw_mode(0o700))?;
        }
        let flags = OFlags::CREATE | OFlags::WRONLY | OFlags::CLOEXEC;
        let file = rustix::fs::openat(scratch.fd(), "bundle/config.json", flags, Mode::from_raw_mode(0o600))?;
        serde_json::to_writer(std::fs::File::from(file), &config)?;
        Ok(())
    };
    write().step(|| "write bundle")?;
    // All sources are open, so that the area may now cover a directory that some of them came from.
    rustix::mount::move_mount(scratch.fd(), "", CWD, AREA, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)
        .step(|| format!("move scratch file system to {AREA}"))?;
    // On a machine with both versions crun refuses to work when it sees version 2 beside version 1, which has the controllers.
    if let Some(v2) = hierarchies.v2().filter(|_| !hierarchies.is_pure_v2()) {
        rustix::mount::unmount(&v2.mount, UnmountFlags::DETACH).step(|| "hide cgroup version 2")?;
    }
    // The runtime looks for itself by its pid in this namespace.
    let proc = mounts::new("proc", &[], MountAttrFlags::empty())?;
    rustix::mount::move_mount(proc.as_fd(), "", CWD, "/proc", MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)
        .step(|| "mount /proc")
}

/// Attaches a source where the bundle will name it.
fn place(scratch: &Scratch, name: &str, source: &rootfs::Source) -> Result<(), Failure> {
    let make = || -> rustix::io::Result<()> {
        if mounts::is_directory(source.mount.as_fd())? {
            rustix::fs::mkdirat(scratch.fd(), name, Mode::from_raw_mode(0o700))
        } else {
            let flags = OFlags::CREATE | OFlags::WRONLY | OFlags::CLOEXEC;
            rustix::fs::openat(scratch.fd(), name, flags, Mode::from_raw_mode(0o600)).map(drop::<OwnedFd>)
        }
    };
    make().step(|| format!("make {name}"))?;
    scratch.attach(name, source.mount.as_fd())
}

fn supervised_signals() -> SigSet {
    let mut signals = SigSet::empty();
    signals.add(Signal::SIGTERM);
    signals.add(Signal::SIGCHLD);
    signals
}

/// Creates and starts the container, and waits for its end.
fn supervise(
    plan: &Plan,
    runtime: &Runtime,
    streams: &Streams,
    report: &Socket,
) -> Result<(i32, Option<i32>), Failure> {
    let area = Path::new(AREA);
    let pid_file = area.join("pid");
    let console = plan
        .talk
        .terminal
        .map(|_| UnixListener::bind(area.join("console")))
        .transpose()
        .step(|| "make socket")?;
    call(plan, runtime, Some(streams), |command| {
        command.arg("create").arg("--bundle").arg(area.join("bundle")).arg("--pid-file").arg(&pid_file);
        if console.is_some() {
            command.arg("--console-socket").arg(area.join("console"));
        }
    })?;
    if let (Some(console), Some(size)) = (console, plan.talk.terminal) {
        // The runtime has sent the terminal before its `create` ended.
        let terminal = receive_terminal(&console).step(|| "receive the terminal from the runtime")?;
        terminal::resize(terminal.as_fd(), size).step(|| "set the terminal's size")?;
        report.send(&Report::Terminal, &[terminal.as_fd()], true).step(|| "report the terminal")?;
    }
    let pid = std::fs::read_to_string(&pid_file).step(|| "read the container's pid")?;
    let pid = pid.trim().parse().map(Pid::from_raw).map_err(|_| Failure::Runtime {
        runtime: runtime.path.clone(),
        message: format!("wrote {pid:?} as the container's pid"),
    })?;
    let process = rustix::process::Pid::from_raw(pid.as_raw()).expect("a process's id is not zero");
    let container = rustix::process::pidfd_open(process, rustix::process::PidfdFlags::empty())
        .step(|| "open the container's process")?;
    report.send(&Report::Container, &[container.as_fd()], true).step(|| "report the container")?;
    call(plan, runtime, None, |command| {
        command.arg("start");
    })?;
    report.send(&Report::Started, &[], true).step(|| "report the start")?;
    loop {
        // Whoever is orphaned in this namespace becomes a child of this process.
        loop {
            match waitpid(None, Some(WaitPidFlag::WNOHANG)) {
                Ok(WaitStatus::Exited(of, code)) if of == pid => return Ok((code, None)),
                Ok(WaitStatus::Signaled(of, signal, _)) if of == pid => {
                    return Ok((128 + signal as i32, Some(signal as i32)));
                }
                Ok(WaitStatus::StillAlive) => break,
                Ok(_) | Err(nix::errno::Errno::EINTR) => {}
                Err(errno) => return Err(errno).step(|| "wait for the container"),
            }
        }
        if supervised_signals().wait().step(|| "wait for signals")? == Signal::SIGTERM {
            // The end of this process is the end of the container.
            if !notices_sigterm_of(pid.as_raw().unsigned_abs()).unwrap_or(true) {
                return Ok((128 + libc::SIGKILL, Some(libc::SIGKILL)));
            }
            let _ = nix::sys::signal::kill(pid, Signal::SIGTERM);
        }
    }
}

/// What the runtime has sent to the console socket (runc's docs/terminals.md): one descriptor, in a message of any text.
fn receive_terminal(console: &UnixListener) -> io::Result<OwnedFd> {
    console.set_nonblocking(true)?;
    let (stream, _) = console.accept()?;
    let mut text = [0; 4096];
    let mut space = [std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    rustix::net::recvmsg(
        &stream,
        &mut [io::IoSliceMut::new(&mut text)],
        &mut control,
        RecvFlags::CMSG_CLOEXEC,
    )?;
    let terminal = control.drain().find_map(|message| match message {
        RecvAncillaryMessage::ScmRights(mut rights) => rights.next(),
        _ => None,
    });
    terminal.ok_or_else(|| io::ErrorKind::UnexpectedEof.into())
}

/// Calls the runtime. With streams, they become the container's.
fn call(
    plan: &Plan,
    runtime: &Runtime,
    streams: Option<&Streams>,
    arguments: impl FnOnce(&mut Command),
) -> Result<(), Failure> {
    let area = Path::new(AREA);
    let log = area.join("log");
    let mut command = Command::new(&runtime.path);
    command.arg("--root").arg(area.join("state")).arg("--log").arg(&log).args(["--log-format", "json"]);
    arguments(&mut command);
    command.arg(&plan.id).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    if let Some(streams) = streams {
        let copy = |fd: &OwnedFd| fd.try_clone().map(Stdio::from).step(|| "copy streams");
        if plan.talk.terminal.is_none() {
            command.stdout(copy(&streams.stdout)?).stderr(copy(&streams.stderr)?);
        }
        if let Some(stdin) = &streams.stdin {
            command.stdin(copy(stdin)?);
        }
    }
    let status = command.status().step(|| format!("call {}", runtime.path.display()))?;
    if status.success() {
        return Ok(());
    }
    Err(Failure::Runtime { runtime: runtime.path.clone(), message: last_message(&log, status) })
}

/// What the runtime's log says last.
fn last_message(log: &PathBuf, status: std::process::ExitStatus) -> String {
    let text = std::fs::read_to_string(log).unwrap_or_default();
    text.lines()
        .rev()
        .find_map(|line| {
            let line: serde_json::Value = serde_json::from_str(line).ok()?;
            let message = line["msg"].as_str()?;
            (line["level"] == "error" || line["level"] == "fatal").then(|| message.to_owned())
        })
        .unwrap_or_else(|| format!("failed without a message ({status})"))
}
