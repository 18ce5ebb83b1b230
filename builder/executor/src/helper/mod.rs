//! The helper process: single-threaded, so that it may fork; started early, so that it is small.
//!
//! It takes [`Request`]s from the daemon, clones a container per run, waits for it, removes what it leaves, and answers.
//! Its end of the socket is its life: when the daemon is gone, however it went, the helper kills every container, cleans up
//! and exits. When the helper itself is killed, the kernel kills the containers (`PR_SET_PDEATHSIG`), and their mounts go with
//! their namespaces; nothing was ever mounted in the host's view.

mod bounds;
mod cgroup;
mod container;
mod devices;
mod fixed;
mod inroot;
mod joined;
mod mounts;
mod rootfs;
mod shared;
mod supervisor;
mod terminal;

use std::{
    collections::HashMap,
    io::{self, Read},
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    time::Duration,
};

use rustix::{
    event::{PollFd, PollFlags},
    process::{Signal, WaitId, WaitIdOptions},
};

pub(crate) use self::terminal::resize;
use self::{
    bounds::Bounds,
    cgroup::{Hierarchies, Owner, RunCgroups},
    container::Streams,
    devices::DeviceGate,
    joined::AllJoined,
    shared::SharedOverlays,
};
use crate::{
    SecurityMode, caps,
    plan::{Network, Plan},
    sys::{self, Cloned},
    wire::{self, Failure, Outcome, Reply, Report, Request, Socket, Step},
};

/// `argv[0]` of a helper.
pub(crate) const HELPER_NAME: &str = "lapstrake-exec-helper";

/// More signals than anybody sends to a process that is not there yet.
const MAX_EARLY_SIGNALS: usize = 64;

/// Runs the helper on its socket until the daemon is gone.
pub(crate) fn serve(socket: Socket) -> ! {
    let code = match Helper::new(socket) {
        Ok(mut helper) => {
            helper.serve();
            helper.finish();
            0
        }
        Err((socket, failure)) => {
            let _ = socket.send(&Reply::Refused { failure }, &[], true);
            1
        }
    };
    std::process::exit(code)
}

struct Helper {
    socket: Socket,
    hierarchies: Hierarchies,
    gate: DeviceGate,
    bounds: Bounds,
    owner: Owner,
    runs: HashMap<String, Run>,
    joined: AllJoined,
    shared: SharedOverlays,
    /// Cgroups that could not be removed yet.
    remains: Vec<RunCgroups>,
    orphaned: bool,
}

/// A container.
struct Run {
    pidfd: OwnedFd,
    /// Until the other end is closed: the container's program has been started, or its first process is gone.
    report: Option<Socket>,
    plan: Plan,
    cgroups: RunCgroups,
    root: Option<OwnedFd>,
    stubs: Vec<String>,
    failure: Option<Failure>,
    /// Told by a supervisor.
    status: Option<(i32, Option<i32>)>,
    /// The container's first process, when a supervisor is not that.
    container: Option<OwnedFd>,
    terminal: Option<OwnedFd>,
    /// Told by a supervisor.
    program_started: bool,
    /// Whether somebody waits for the program's start.
    awaited: bool,
    /// Signals for when it has been.
    early: Vec<Signal>,
}

impl Helper {
    fn new(socket: Socket) -> Result<Self, (Socket, Failure)> {
        match Self::isolate() {
            Ok((hierarchies, gate, owner)) => {
                let without_devices = match &gate {
                    DeviceGate::NoDevices { reason } => Some(reason.clone()),
                    DeviceGate::Cgroup { .. } => None,
                };
                let (bounds, without_bounds) = Bounds::set(&hierarchies, &owner);
                let ready = Reply::Ready { without_devices, without_bounds };
                match socket.send(&ready, &[], true) {
                    Ok(()) => Ok(Self {
                        socket,
                        hierarchies,
                        gate,
                        bounds,
                        owner,
                        runs: HashMap::new(),
                        joined: AllJoined::new(),
                        shared: SharedOverlays::default(),
                        remains: Vec::new(),
                        orphaned: false,
                    }),
                    Err(_) => Err((socket, Failure::Died)),
                }
            }
            Err(failure) => Err((socket, failure)),
        }
    }

    /// Cuts the process off from the daemon's terminal, descriptors and (for what it mounts) file system.
    fn isolate() -> Result<(Hierarchies, DeviceGate, Owner), Failure> {
        sys::close_on_exec_from(3).step(|| "close descriptors")?;
        rustix::process::setsid().step(|| "make session")?;
        // What containers start with, and what the daemon's own masks would spoil. A closed standard error must not kill.
        sys::reset_signals();
        sys::ignore_signal(libc::SIGPIPE);
        // Exact modes for what is made in images.
        rustix::process::umask(rustix::fs::Mode::empty());
        rustix::process::chdir("/").step(|| "change to /")?;
        nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNS)
            .step(|| "unshare mounts (root is needed)")?;
        // New mounts of the host appear here, none of ours there.
        let slave =
            rustix::mount::MountPropagationFlags::DOWNSTREAM | rustix::mount::MountPropagationFlags::REC;
        rustix::mount::mount_change("/", slave).step(|| "make mounts slave")?;
        let hierarchies = Hierarchies::find().step(|| "find cgroups")?;
        let owner = Owner::current();
        cgroup::sweep(&hierarchies, &owner);
        let gate = DeviceGate::close(&hierarchies, &owner);
        Ok((hierarchies, gate, owner))
    }

    fn serve(&mut self) {
        while !self.orphaned || !self.runs.is_empty() || !self.joined.is_empty() {
            if let Err(error) = self.turn() {
                // Nothing can be waited for any more; the death signal ends the containers.
                eprintln!("{HELPER_NAME}: {error}");
                return;
            }
        }
    }

    /// Waits for events and handles them.
    fn turn(&mut self) -> io::Result<()> {
        self.remains.retain_mut(|cgroups| !cgroups.remove());
        let ids: Vec<String> = self.runs.keys().cloned().collect();
        let mut polls = Vec::with_capacity(1 + 2 * ids.len());
        if !self.orphaned {
            polls.push(PollFd::new(&self.socket, PollFlags::IN));
        }
        for id in &ids {
            let run = &self.runs[id];
            polls.push(PollFd::new(&run.pidfd, PollFlags::IN));
            if let Some(report) = &run.report {
                polls.push(PollFd::new(report, PollFlags::IN));
            }
        }
        let joined: Vec<String> = self.joined.keys().cloned().collect();
        for id in &joined {
            let joined = &self.joined[id];
            polls.push(PollFd::new(&joined.pidfd, PollFlags::IN));
            if let Some(report) = &joined.report {
                polls.push(PollFd::new(report, PollFlags::IN));
            }
        }
        let again = Duration::from_millis(20).try_into().expect("20 ms fit a timespec");
        let timeout = if self.remains.is_empty() { None } else { Some(&again) };
        rustix::io::retry_on_intr(|| rustix::event::poll(&mut polls, timeout))?;
        let ready: Vec<bool> = polls.iter().map(|poll| !poll.revents().is_empty()).collect();
        drop(polls);
        let mut ready = ready.into_iter();
        let requested = !self.orphaned && ready.next().unwrap_or(false);
        for id in ids {
            let ended = ready.next().unwrap_or(false);
            let reported = self.runs[&id].report.is_some() && ready.next().unwrap_or(false);
            if reported || ended {
                self.run_mut(&id).take_reports();
                self.tell(&id);
            }
            if ended {
                self.end(&id);
            }
        }
        for id in joined {
            let ended = ready.next().unwrap_or(false);
            let reported = self.joined[&id].report.is_some() && ready.next().unwrap_or(false);
            if reported || ended {
                self.attend_joined(&id, ended);
            }
        }
        if requested { self.request() } else { Ok(()) }
    }

    fn run_mut(&mut self, id: &str) -> &mut Run {
        self.runs.get_mut(id).expect("the id was just listed")
    }

    /// Passes on what the daemon waits for.
    fn tell(&mut self, id: &str) {
        let Some(run) = self.runs.get_mut(id) else { return };
        if let Some(terminal) = run.terminal.take() {
            let _ = self.socket.send(&Reply::Terminal { id: id.to_owned() }, &[terminal.as_fd()], true);
        }
        if !run.has_started() {
            return;
        }
        for signal in std::mem::take(&mut run.early) {
            send_signal(run.first_process(), signal);
        }
        if run.awaited {
            run.awaited = false;
            let _ = self.socket.send(&Reply::Started { id: id.to_owned() }, &[], true);
        }
    }

    /// Takes one request.
    fn request(&mut self) -> io::Result<()> {
        match self.socket.receive::<Request>(false) {
            Ok(Some((Request::Run { id }, fds))) => {
                if let Err(failure) = self.start(&id, fds) {
                    self.answer(id, Outcome::Failed(failure));
                }
            }
            Ok(Some((Request::Join { id, into }, fds))) => {
                if let Err(failure) = self.join(&id, &into, fds) {
                    self.answer(id, Outcome::Failed(failure));
                }
            }
            Ok(Some((Request::Signal { id, signal }, _))) => {
                if let Some(signal) = Signal::from_named_raw(signal) {
                    self.signal(&id, signal);
                }
            }
            Ok(Some((Request::Terminate { id }, _))) => {
                let noticed = match (self.runs.get(&id), self.joined.get(&id)) {
                    (Some(run), _) => run.terminate(),
                    (None, Some(joined)) => joined.terminate(),
                    (None, None) => false,
                };
                let _ = self.socket.send(&Reply::Terminated { id, noticed }, &[], true);
            }
            Ok(Some((Request::Kill { id }, _))) => match (self.runs.get(&id), self.joined.get(&id)) {
                (Some(run), _) => run.kill(),
                (None, Some(joined)) => send_signal(joined.pidfd.as_fd(), Signal::KILL),
                (None, None) => {}
            },
            Ok(None) => self.orphan(),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) if error.kind() == io::ErrorKind::ConnectionReset => self.orphan(),
            Err(error) => return Err(error),
        }
        Ok(())
    }

    /// Gives a process a signal; one that has not been started yet gets it then.
    fn signal(&mut self, id: &str, signal: Signal) {
        if let Some(run) = self.runs.get_mut(id) {
            if run.has_started() {
                send_signal(run.first_process(), signal);
            } else if run.early.len() < MAX_EARLY_SIGNALS {
                run.early.push(signal);
            }
        } else if let Some(joined) = self.joined.get(id) {
            send_signal(joined.pidfd.as_fd(), signal);
        }
    }

    /// The daemon is gone.
    fn orphan(&mut self) {
        self.orphaned = true;
        self.runs.values().for_each(Run::kill);
    }

    fn answer(&mut self, id: String, outcome: Outcome) {
        // A daemon that does not listen is one that has gone; the next receive says so.
        let _ = self.socket.send_ended(id, outcome);
    }

    /// Makes a container.
    fn start(&mut self, id: &str, fds: Vec<OwnedFd>) -> Result<(), Failure> {
        if self.runs.contains_key(id) || self.joined.contains_key(id) {
            return Err(Failure::Exists);
        }
        let bad = || Failure::Setup { step: "receive plan".to_owned(), errno: libc::EBADMSG };
        let mut fds = fds.into_iter();
        let (Some(plan), Some(stdout), Some(stderr)) = (fds.next(), fds.next(), fds.next()) else {
            return Err(bad());
        };
        let mut plan: Plan = read_message(plan)?;
        let stdin = if plan.talk.stdin { Some(fds.next().ok_or_else(bad)?) } else { None };
        let network = fds.next();
        if network.is_some() != matches!(plan.network, Network::Sandbox { .. }) {
            return Err(bad());
        }
        plan.cgroup = self.owner.run_cgroup(&plan.cgroup);
        if let (Some(memory), None) = (plan.resources.memory, plan.resources.memory_swap)
            && self.hierarchies.limit_swap()
        {
            // As dockerd.
            plan.resources.memory_swap = Some(i64::try_from(memory).unwrap_or(i64::MAX).saturating_mul(2));
        }
        if let DeviceGate::NoDevices { .. } = self.gate
            && plan.security == SecurityMode::Sandbox
        {
            plan.caps = plan.caps.and(!caps::MKNOD.bits());
            plan.no_devices = true;
        }
        let cgroups = if plan.runtime.is_some() {
            // The runtime makes them.
            RunCgroups::adopt(&plan, &self.hierarchies)
        } else {
            RunCgroups::create(&plan, &self.hierarchies, &self.gate)?
        };
        let overlays = match self.shared.take(&plan) {
            Ok(overlays) => overlays,
            Err(failure) => {
                self.discard(cgroups);
                return Err(failure);
            }
        };
        let streams = Streams { stdin, stdout, stderr, network, overlays };
        let (pidfd, report) = match self.clone_container(&plan, &streams, &cgroups) {
            Ok(started) => started,
            Err(failure) => {
                self.shared.give_back(&plan);
                self.discard(cgroups);
                return Err(failure);
            }
        };
        let awaited = plan.talk.started;
        let run = Run {
            pidfd,
            report: Some(report),
            plan,
            cgroups,
            root: None,
            stubs: Vec::new(),
            failure: None,
            status: None,
            container: None,
            terminal: None,
            program_started: false,
            awaited,
            early: Vec::new(),
        };
        self.runs.insert(id.to_owned(), run);
        Ok(())
    }

    fn clone_container(
        &self,
        plan: &Plan,
        streams: &Streams,
        cgroups: &RunCgroups,
    ) -> Result<(OwnedFd, Socket), Failure> {
        let (ours, theirs) = Socket::pair().step(|| "make socket")?;
        if let Some(runtime) = &plan.runtime {
            return match sys::clone_process(libc::CLONE_NEWNS | libc::CLONE_NEWPID, None).step(|| "clone")? {
                Cloned::Parent(pidfd) => Ok((pidfd, ours)),
                Cloned::Child => {
                    drop(ours);
                    supervisor::main(plan, runtime, streams, &theirs, &self.hierarchies)
                }
            };
        }
        let into = cgroups.v2_directory(&self.hierarchies);
        let mut namespaces = libc::CLONE_NEWNS | libc::CLONE_NEWPID | libc::CLONE_NEWIPC | libc::CLONE_NEWUTS;
        if plan.network == Network::Empty {
            namespaces |= libc::CLONE_NEWNET;
        }
        // With version 1 hierarchies beside it a cgroup namespace cannot show them (moby/buildkit#4108).
        if into.is_some() && self.hierarchies.is_pure_v2() {
            namespaces |= libc::CLONE_NEWCGROUP;
        }
        match sys::clone_process(namespaces, into.as_ref().map(AsFd::as_fd)).step(|| "clone")? {
            Cloned::Parent(pidfd) => Ok((pidfd, ours)),
            Cloned::Child => {
                drop(ours);
                let prepared =
                    if plan.security == SecurityMode::Insecure { self.gate.leave() } else { Ok(()) };
                let is_in = into.is_some() && self.hierarchies.is_pure_v2();
                match prepared.and_then(|()| if is_in { Ok(()) } else { cgroups.join() }) {
                    Ok(()) => {
                        let view = cgroups.view(&self.hierarchies);
                        container::main(plan, streams, theirs, &view)
                    }
                    Err(failure) => {
                        let _ = theirs.send_failure(failure);
                        sys::exit_now(1)
                    }
                }
            }
        }
    }

    /// The container's first process has ended, and with it its pid namespace.
    fn end(&mut self, id: &str) {
        let Some(mut run) = self.runs.remove(id) else { return };
        let outcome = reap(run.pidfd.as_fd());
        run.clean();
        self.shared.give_back(&run.plan);
        let oom_killed = run.cgroups.oom_killed();
        self.discard(run.cgroups);
        let outcome = match (run.failure, run.status, outcome) {
            (Some(failure), ..) => Outcome::Failed(failure),
            (None, Some((code, signal)), _) | (None, None, Ok((code, signal))) => {
                Outcome::Exited { code, signal, oom_killed }
            }
            (None, None, Err(failure)) => Outcome::Failed(failure),
        };
        self.answer(id.to_owned(), outcome);
    }

    fn discard(&mut self, mut cgroups: RunCgroups) {
        for _ in 0..20 {
            if cgroups.remove() {
                return;
            }
            std::thread::sleep(Duration::from_micros(500));
        }
        self.remains.push(cgroups);
    }

    fn finish(mut self) {
        for _ in 0..100 {
            self.remains.retain_mut(|cgroups| !cgroups.remove());
            if self.remains.is_empty() {
                break;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        // The parent of all stays, as Docker's does: another helper, or its runtime, may be about to make something in it.
        self.bounds.lift();
        self.gate.open();
    }
}

impl Run {
    /// Takes what the container's first process has reported so far.
    fn take_reports(&mut self) {
        while let Some(report) = &self.report {
            match report.receive::<Report>(false) {
                Ok(Some((Report::Root, fds))) => self.root = fds.into_iter().next(),
                Ok(Some((Report::Terminal, fds))) => self.terminal = fds.into_iter().next(),
                Ok(Some((Report::Container, fds))) => self.container = fds.into_iter().next(),
                Ok(Some((Report::Started, _))) => self.program_started = true,
                Ok(Some((Report::Stub(path), _))) => self.stubs.push(path),
                Ok(Some((Report::Failed(failure), _))) => self.failure = Some(failure),
                Ok(Some((Report::Status { code, signal }, _))) => self.status = Some((code, signal)),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                Ok(None) | Err(_) => self.report = None,
            }
        }
    }

    /// What the program becomes or has become.
    fn first_process(&self) -> BorrowedFd<'_> {
        self.container.as_ref().unwrap_or(&self.pidfd).as_fd()
    }

    /// Whether the program has been started.
    fn has_started(&self) -> bool {
        match self.plan.runtime {
            Some(_) => self.program_started,
            None => self.report.is_none() && self.failure.is_none(),
        }
    }

    /// Asks the program to end. False when it cannot notice: as pid 1 it gets no signal that it has no handler for (and is not
    /// waiting for, which needs it blocked).
    fn terminate(&self) -> bool {
        let _ = rustix::process::pidfd_send_signal(&self.pidfd, Signal::TERM);
        if self.report.is_some() {
            // Not started yet, or a supervisor, which handles it.
            return self.plan.runtime.is_some();
        }
        notices_sigterm(self.pidfd.as_fd()).unwrap_or(true)
    }

    fn kill(&self) {
        // Fails when it is dead already.
        let _ = rustix::process::pidfd_send_signal(&self.pidfd, Signal::KILL);
    }

    /// Removes what the run has left in its root file system, and unmounts that.
    fn clean(&mut self) {
        if let Some(root) = self.root.take() {
            for stub in self.stubs.iter().rev() {
                // The step has changed it; then it is the step's.
                let _ = inroot::remove_stub(root.as_fd(), stub);
            }
        }
    }
}

/// What the daemon has put into a file in memory.
fn read_message<M: serde::de::DeserializeOwned>(fd: OwnedFd) -> Result<M, Failure> {
    let mut file = std::fs::File::from(fd);
    let mut bytes = Vec::new();
    let read = || -> io::Result<M> {
        io::Seek::rewind(&mut file)?;
        file.take(wire::MAX_PLAN).read_to_end(&mut bytes)?;
        Ok(serde_json::from_slice(&bytes)?)
    };
    read().step(|| "read plan")
}

/// Collects a child's exit status.
fn reap(pidfd: BorrowedFd<'_>) -> Result<(i32, Option<i32>), Failure> {
    let status =
        rustix::io::retry_on_intr(|| rustix::process::waitid(WaitId::PidFd(pidfd), WaitIdOptions::EXITED))
            .step(|| "wait for the container")?;
    let signal = status.as_ref().and_then(|status| status.terminating_signal());
    let code = status.as_ref().and_then(|status| status.exit_status());
    match (code, signal) {
        (Some(code), _) => Ok((code, None)),
        (None, Some(signal)) => Ok((128 + signal, Some(signal))),
        (None, None) => Err(Failure::Died),
    }
}

fn send_signal(process: BorrowedFd<'_>, signal: Signal) {
    // Fails when it is dead already.
    let _ = rustix::process::pidfd_send_signal(process, signal);
}

/// Whether the process catches SIGTERM or holds it blocked, from `/proc/PID/status`.
fn notices_sigterm(pidfd: BorrowedFd<'_>) -> Option<bool> {
    notices_sigterm_of(pid_of(pidfd)?)
}

/// Whether the process has SIGTERM ignored.
fn ignores_sigterm(pidfd: BorrowedFd<'_>) -> Option<bool> {
    sigterm_in(pid_of(pidfd)?, &["SigIgn:"])
}

fn pid_of(pidfd: BorrowedFd<'_>) -> Option<u32> {
    use std::os::fd::AsRawFd;
    let info = std::fs::read_to_string(format!("/proc/self/fdinfo/{}", pidfd.as_raw_fd())).ok()?;
    field(&info, "Pid:")?.parse().ok()
}

/// The same by pid.
fn notices_sigterm_of(pid: u32) -> Option<bool> {
    sigterm_in(pid, &["SigCgt:", "SigBlk:"])
}

/// Whether SIGTERM is in one of these masks of a process.
fn sigterm_in(pid: u32, masks: &[&str]) -> Option<bool> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let bit = 1u64 << (Signal::TERM.as_raw() - 1);
    let mut any = 0;
    for name in masks {
        any |= u64::from_str_radix(field(&status, name)?, 16).ok()?;
    }
    Some(any & bit != 0)
}

fn field<'a>(text: &'a str, name: &str) -> Option<&'a str> {
    text.lines().find_map(|line| line.strip_prefix(name)).map(str::trim)
}
