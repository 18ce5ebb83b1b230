//! Further processes of a container: in its namespaces and cgroups, under the same rules, and gone with its first process at the latest.
//!
//! The helper makes them as its own children, in the container's pid namespace: `setns` changes where a process's *children* are born,
//! so the helper goes there for the moment of one clone. Everything else the new process enters itself.

use std::{
    collections::HashMap,
    convert::Infallible,
    io,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
};

use rustix::{
    process::Signal,
    thread::{ThreadNameSpaceType, move_into_thread_name_spaces},
};

use super::{
    Helper, Run,
    container::{self, Streams},
    rootfs, send_signal,
};
use crate::{
    SecurityMode,
    plan::{Network, Plan},
    sys::{self, Cloned},
    talk::Extra,
    wire::{Failure, Outcome, Reply, Report, Socket, Step},
};

/// All of them, by id.
pub(super) type AllJoined = HashMap<String, Joined>;

/// One.
pub(super) struct Joined {
    pub(super) pidfd: OwnedFd,
    /// Until the other end is closed: the program has been started, or will not be.
    pub(super) report: Option<Socket>,
    terminal: Option<OwnedFd>,
    failure: Option<Failure>,
    /// Whether somebody waits for the program's start.
    awaited: bool,
}

impl Helper {
    /// Starts a process beside the first one of the run `into`.
    pub(super) fn join(&mut self, id: &str, into: &str, fds: Vec<OwnedFd>) -> Result<(), Failure> {
        if self.runs.contains_key(id) || self.joined.contains_key(id) {
            return Err(Failure::Exists);
        }
        let run = self.runs.get(into).filter(|run| run.has_started()).ok_or(Failure::NotRunning)?;
        let target = if run.plan.runtime.is_some() { run.container.as_ref() } else { Some(&run.pidfd) };
        let target = target.ok_or(Failure::NotRunning)?;
        let mut fds = fds.into_iter();
        let (Some(extra), Some(stdout), Some(stderr)) = (fds.next(), fds.next(), fds.next()) else {
            return Err(Failure::Setup { step: "receive process".to_owned(), errno: libc::EBADMSG });
        };
        let extra: Extra = super::read_message(extra)?;
        let streams = Streams { stdin: fds.next(), stdout, stderr, network: None, overlays: Vec::new() };
        let awaited = extra.talk.started;
        let Extra { args, env, cwd, user, talk } = extra;
        let plan = Plan { args, env, cwd, user, talk, ..run.plan.clone() };
        let (pidfd, report) = self.clone_into(run, target.as_fd(), &plan, &streams)?;
        let joined = Joined { pidfd, report: Some(report), terminal: None, failure: None, awaited };
        self.joined.insert(id.to_owned(), joined);
        Ok(())
    }

    fn clone_into(
        &self,
        run: &Run,
        target: BorrowedFd<'_>,
        plan: &Plan,
        streams: &Streams,
    ) -> Result<(OwnedFd, Socket), Failure> {
        let (ours, theirs) = Socket::pair().step(|| "make socket")?;
        let home = std::fs::File::open("/proc/self/ns/pid").step(|| "open process namespace")?;
        let cgroup = run.cgroups.v2_directory(&self.hierarchies);
        move_into_thread_name_spaces(target, ThreadNameSpaceType::PROCESS_ID)
            .step(|| "enter the container's process namespace")?;
        let cloned = sys::clone_process(0, cgroup.as_ref().map(AsFd::as_fd));
        if let Ok(Cloned::Child) = cloned {
            drop(ours);
            let failure = match self.become_joined(run, target, plan, streams, &theirs) {
                Ok(never) => match never {},
                Err(failure) => failure,
            };
            // When the helper is gone there is nobody to tell.
            let _ = theirs.send_failure(failure);
            sys::exit_now(1)
        }
        // Where the next container is to be born. A helper that is lost in this one is none any more.
        move_into_thread_name_spaces(home.as_fd(), ThreadNameSpaceType::PROCESS_ID)
            .expect("a process may go back to its own process namespace");
        match cloned.step(|| "clone")? {
            Cloned::Parent(pidfd) => Ok((pidfd, ours)),
            Cloned::Child => unreachable!("the child has been dealt with"),
        }
    }

    /// In the new process.
    fn become_joined(
        &self,
        run: &Run,
        target: BorrowedFd<'_>,
        plan: &Plan,
        streams: &Streams,
        report: &Socket,
    ) -> Result<Infallible, Failure> {
        container::die_with_helper(report)?;
        container::isolate(streams)?;
        container::ordinary_oom_score()?;
        if plan.security == SecurityMode::Insecure && plan.runtime.is_none() {
            self.gate.leave()?;
        }
        if !self.hierarchies.is_pure_v2() {
            run.cgroups.join_existing()?;
        }
        let mut namespaces = ThreadNameSpaceType::MOUNT
            | ThreadNameSpaceType::INTER_PROCESS_COMMUNICATION
            | ThreadNameSpaceType::HOST_NAME_AND_NIS_DOMAIN_NAME;
        if plan.network != Network::Host {
            namespaces |= ThreadNameSpaceType::NETWORK;
        }
        if self.hierarchies.is_pure_v2() && plan.runtime.is_none() {
            namespaces |= ThreadNameSpaceType::CONTROL_GROUP;
        }
        // From here on it is a process among the container's, with descriptors that are none of theirs (CVE-2016-9962).
        sys::hide_from_debuggers().step(|| "hide from debuggers")?;
        move_into_thread_name_spaces(target, namespaces).step(|| "enter the container")?;
        // As the root directory now is the container's.
        let identity = container::identify(plan, &rootfs::entered()?)?;
        container::standard_input(plan, streams, identity.uid, report)?;
        container::become_program(plan, streams, report, &identity)
    }

    /// Takes what a joined process has reported, and hears whether it has ended.
    pub(super) fn attend_joined(&mut self, id: &str, ended: bool) {
        let Some(joined) = self.joined.get_mut(id) else { return };
        joined.take_reports();
        if let Some(terminal) = joined.terminal.take() {
            let _ = self.socket.send(&Reply::Terminal { id: id.to_owned() }, &[terminal.as_fd()], true);
        }
        if joined.awaited && joined.report.is_none() && joined.failure.is_none() {
            joined.awaited = false;
            let _ = self.socket.send(&Reply::Started { id: id.to_owned() }, &[], true);
        }
        if ended && let Some(joined) = self.joined.remove(id) {
            let outcome = match (joined.failure, super::reap(joined.pidfd.as_fd())) {
                (Some(failure), _) | (None, Err(failure)) => Outcome::Failed(failure),
                (None, Ok((code, signal))) => Outcome::Exited { code, signal, oom_killed: false },
            };
            self.answer(id.to_owned(), outcome);
        }
    }
}

impl Joined {
    fn take_reports(&mut self) {
        while let Some(report) = &self.report {
            match report.receive::<Report>(false) {
                Ok(Some((Report::Terminal, fds))) => self.terminal = fds.into_iter().next(),
                Ok(Some((Report::Failed(failure), _))) => self.failure = Some(failure),
                Ok(Some(_)) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                Ok(None) | Err(_) => self.report = None,
            }
        }
    }

    /// Asks it to end. False when it takes no notice: unlike a first process it ends by the signal unless it ignores that.
    pub(super) fn terminate(&self) -> bool {
        send_signal(self.pidfd.as_fd(), Signal::TERM);
        !super::ignores_sigterm(self.pidfd.as_fd()).unwrap_or(false)
    }
}
