//! The container's first process, between clone and exec.

use std::{
    ffi::{CString, OsStr},
    io::{self, Read as _},
    os::{
        fd::{AsFd, OwnedFd},
        unix::ffi::OsStrExt as _,
    },
};

use nix::errno::Errno;
use rustix::{
    fs::Mode,
    process::Signal,
    thread::{CapabilitySet, CapabilitySets},
};

use super::{
    cgroup::CgroupView,
    fixed,
    rootfs::{self, BareRoot, Scratch},
    terminal,
};
use crate::{
    caps::CapSet,
    elf,
    plan::{Network, Plan},
    sys,
    user::{self, Identity, UnknownUser},
    wire::{Failure, Socket, Step},
};

/// Descriptors of the new process.
pub(super) struct Streams {
    /// `None`: empty, or a terminal.
    pub(super) stdin: Option<OwnedFd>,
    pub(super) stdout: OwnedFd,
    pub(super) stderr: OwnedFd,
    /// Of a sandbox's network.
    pub(super) network: Option<OwnedFd>,
    /// For each further mount, what is shared of it.
    pub(super) overlays: Vec<Option<OwnedFd>>,
}

/// Becomes the program of `plan`, or reports why not and exits.
pub(super) fn main(plan: &Plan, streams: &Streams, report: Socket, cgroups: &CgroupView) -> ! {
    let failure = match set_up(plan, streams, &report, cgroups) {
        Ok(never) => match never {},
        Err(failure) => failure,
    };
    // When the helper is gone there is nobody to tell.
    let _ = report.send_failure(failure);
    sys::exit_now(1)
}

fn set_up(
    plan: &Plan,
    streams: &Streams,
    report: &Socket,
    cgroups: &CgroupView,
) -> Result<std::convert::Infallible, Failure> {
    die_with_helper(report)?;
    enter_network(streams)?;
    isolate(streams)?;
    ordinary_oom_score()?;
    let mut scratch = Scratch::new()?;
    let bare = BareRoot::attach(plan, &scratch, report)?;
    let identity = identify(plan, &bare)?;
    let sources = rootfs::sources(plan, &mut scratch, &streams.overlays)?;
    bare.populate(plan, &sources, &identity, report)?;
    rootfs::enter(plan, &identity, &scratch, &bare, sources, cgroups)?;
    drop((scratch, bare));
    nix::unistd::sethostname(OsStr::new(&plan.hostname)).step(|| "set host name")?;
    if plan.network == Network::Empty {
        let socket =
            rustix::net::socket(rustix::net::AddressFamily::INET, rustix::net::SocketType::DGRAM, None)
                .step(|| "open socket")?;
        sys::loopback_up(socket.as_fd()).step(|| "set loopback up")?;
    }
    standard_input(plan, streams, identity.uid, report)?;
    become_program(plan, streams, report, &identity)
}

/// What the process reads from: until here the null device. A terminal takes the place of the other streams as well.
pub(super) fn standard_input(
    plan: &Plan,
    streams: &Streams,
    uid: u32,
    report: &Socket,
) -> Result<(), Failure> {
    if let Some(size) = plan.talk.terminal {
        return terminal::take(size, uid, report);
    }
    if let Some(stdin) = &streams.stdin {
        let _ = fixed::give(stdin.as_fd(), uid);
        nix::unistd::dup2_stdin(stdin).step(|| "set standard input")?;
    }
    Ok(())
}

/// The rest, in the container: limits, rights, and the program.
pub(super) fn become_program(
    plan: &Plan,
    streams: &Streams,
    report: &Socket,
    identity: &Identity,
) -> Result<std::convert::Infallible, Failure> {
    limits(plan)?;
    for stream in [&streams.stdout, &streams.stderr] {
        // Fails for what is no pipe of ours; then the owner has to do.
        let _ = fixed::give(stream.as_fd(), identity.uid);
    }
    // Keyrings may be compiled out.
    match sys::new_session_keyring() {
        Err(error) if error.raw_os_error() != Some(libc::ENOSYS) => {
            return Err(error).step(|| "make session keyring");
        }
        _ => {}
    }
    let entered = enter_directory(&plan.cwd);
    let env = environment(plan, identity);
    let args = c_strings(&plan.args);
    if !plan.seccomp.is_empty() {
        // Before privileges go: installing a filter without no_new_privs needs them. (Docker builds run without
        // no_new_privs, so that sudo works.) The filter must let the calls below pass, which Docker's does.
        sys::install_seccomp(&program(&plan.seccomp)).step(|| "install seccomp filter")?;
    }
    become_user(identity, plan.caps, plan.security == crate::SecurityMode::Insecure)?;
    // Root may be kept out of a directory that its user may enter (NFS), and the other way round.
    if entered.is_err() {
        enter_directory(&plan.cwd).step(|| format!("change to working directory {}", plan.cwd))?;
    }
    die_with_helper(report)?;
    rustix::process::umask(Mode::from_raw_mode(0o022));
    // The helper has all others at their defaults, and none blocked.
    sys::reset_signal(libc::SIGPIPE);
    Err(exec(plan, &args, &env))
}

/// Enters the sandbox's network, before anything is mounted: a sysfs shows the network of who mounts it.
pub(super) fn enter_network(streams: &Streams) -> Result<(), Failure> {
    let Some(namespace) = &streams.network else { return Ok(()) };
    rustix::thread::move_into_link_name_space(
        namespace.as_fd(),
        Some(rustix::thread::LinkNameSpaceType::Network),
    )
    .step(|| "enter the sandbox's network")
}

/// The kernel forgets the death signal when credentials change, so this is called again then.
pub(super) fn die_with_helper(report: &Socket) -> Result<(), Failure> {
    rustix::process::set_parent_process_death_signal(Some(Signal::KILL)).step(|| "set death signal")?;
    // The helper may have died before the line above.
    let mut poll = [rustix::event::PollFd::new(report, rustix::event::PollFlags::empty())];
    rustix::event::poll(&mut poll, Some(&rustix::event::Timespec::default())).step(|| "poll helper")?;
    if poll[0].revents().contains(rustix::event::PollFlags::HUP) {
        return Err(Failure::Died);
    }
    Ok(())
}

/// A session of its own, its output streams, and no other descriptors after exec.
pub(super) fn isolate(streams: &Streams) -> Result<(), Failure> {
    rustix::process::setsid().step(|| "make session")?;
    let set = || -> nix::Result<()> {
        nix::unistd::dup2_stdout(&streams.stdout)?;
        nix::unistd::dup2_stderr(&streams.stderr)
    };
    set().step(|| "set standard streams")?;
    sys::close_on_exec_from(3).step(|| "close descriptors")
}

/// A daemon that the kernel is to spare when memory runs out does not pass that on.
pub(super) fn ordinary_oom_score() -> Result<(), Failure> {
    const FILE: &str = "/proc/self/oom_score_adj";
    let spared = std::fs::read_to_string(FILE).is_ok_and(|score| score.starts_with('-'));
    if spared { std::fs::write(FILE, "0").step(|| "reset oom score") } else { Ok(()) }
}

/// Looks the user up in the image.
pub(super) fn identify(plan: &Plan, bare: &BareRoot) -> Result<Identity, Failure> {
    let (passwd, group) = (bare.read("/etc/passwd")?, bare.read("/etc/group")?);
    let mut identity = user::resolve(&plan.user, &passwd, &group).map_err(|unknown| match unknown {
        UnknownUser::User(name) => Failure::NoSuchUser { group: false, name },
        UnknownUser::Group(name) => Failure::NoSuchUser { group: true, name },
    })?;
    for gid in &plan.groups {
        if !identity.groups.contains(gid) {
            identity.groups.push(*gid);
        }
    }
    Ok(identity)
}

fn limits(plan: &Plan) -> Result<(), Failure> {
    for limit in &plan.rlimits {
        let resource = match limit.resource {
            libc::RLIMIT_CPU => nix::sys::resource::Resource::RLIMIT_CPU,
            libc::RLIMIT_FSIZE => nix::sys::resource::Resource::RLIMIT_FSIZE,
            libc::RLIMIT_DATA => nix::sys::resource::Resource::RLIMIT_DATA,
            libc::RLIMIT_STACK => nix::sys::resource::Resource::RLIMIT_STACK,
            libc::RLIMIT_CORE => nix::sys::resource::Resource::RLIMIT_CORE,
            libc::RLIMIT_RSS => nix::sys::resource::Resource::RLIMIT_RSS,
            libc::RLIMIT_NPROC => nix::sys::resource::Resource::RLIMIT_NPROC,
            libc::RLIMIT_NOFILE => nix::sys::resource::Resource::RLIMIT_NOFILE,
            libc::RLIMIT_MEMLOCK => nix::sys::resource::Resource::RLIMIT_MEMLOCK,
            libc::RLIMIT_AS => nix::sys::resource::Resource::RLIMIT_AS,
            libc::RLIMIT_LOCKS => nix::sys::resource::Resource::RLIMIT_LOCKS,
            libc::RLIMIT_SIGPENDING => nix::sys::resource::Resource::RLIMIT_SIGPENDING,
            libc::RLIMIT_MSGQUEUE => nix::sys::resource::Resource::RLIMIT_MSGQUEUE,
            libc::RLIMIT_NICE => nix::sys::resource::Resource::RLIMIT_NICE,
            libc::RLIMIT_RTPRIO => nix::sys::resource::Resource::RLIMIT_RTPRIO,
            _ => nix::sys::resource::Resource::RLIMIT_RTTIME,
        };
        nix::sys::resource::setrlimit(resource, limit.soft, limit.hard).map_err(|errno| Failure::Limit {
            limit: format!("ulimit {}", limit.name),
            reason: io::Error::from(errno).to_string(),
        })?;
    }
    Ok(())
}

/// Enters the working directory and checks that it is one of the container: a path through a leaked descriptor
/// (`/proc/self/fd/N`, CVE-2024-21626) would be outside of the root, which the kernel then says.
fn enter_directory(cwd: &str) -> io::Result<()> {
    rustix::process::chdir(cwd)?;
    let now = rustix::process::getcwd(Vec::new())?;
    if !now.as_bytes().starts_with(b"/") {
        rustix::process::chdir("/")?;
        return Err(io::Error::from_raw_os_error(libc::ENOENT));
    }
    Ok(())
}

/// The plan's environment, and `HOME` if it has none.
fn environment(plan: &Plan, identity: &Identity) -> Vec<CString> {
    let mut env = c_strings(&plan.env);
    // As runc: an empty HOME counts as none.
    if !plan.env.iter().any(|entry| entry.strip_prefix("HOME=").is_some_and(|home| !home.is_empty())) {
        env.retain(|entry| entry.as_bytes() != b"HOME=");
        env.extend(CString::new(format!("HOME={}", identity.home)));
    }
    env
}

fn c_strings(texts: &[String]) -> Vec<CString> {
    texts.iter().map(|text| CString::new(text.as_str()).expect("the plan has no NUL bytes")).collect()
}

fn program(instructions: &[u64]) -> Vec<sys::BpfInstruction> {
    instructions
        .iter()
        .map(|&packed| sys::BpfInstruction {
            code: (packed >> 48) as u16,
            jt: (packed >> 40) as u8,
            jf: (packed >> 32) as u8,
            k: packed as u32,
        })
        .collect()
}

/// Sets groups, ids and capabilities. As BuildKit has it: the set is permitted, effective and bounding; inheritable and
/// ambient too only for insecure containers, so that others lose it at exec when not root.
fn become_user(identity: &Identity, caps: CapSet, inherit: bool) -> Result<(), Failure> {
    let now = rustix::thread::capabilities(None).step(|| "read capabilities")?;
    // What the daemon lacks it cannot give.
    let set = CapabilitySet::from_bits_retain(caps.and(now.permitted.bits()).bits());
    for bit in 0..64 {
        let capability = CapabilitySet::from_bits_retain(1 << bit);
        if set.contains(capability) {
            continue;
        }
        match rustix::thread::remove_capability_from_bounding_set(capability) {
            Ok(()) => {}
            // Beyond the last that the kernel knows.
            Err(rustix::io::Errno::INVAL) => break,
            Err(errno) => return Err(errno).step(|| "drop capability"),
        }
    }
    rustix::thread::set_keep_capabilities(true).step(|| "keep capabilities")?;
    let groups: Vec<_> = identity.groups.iter().map(|&gid| rustix::process::Gid::from_raw(gid)).collect();
    let (uid, gid) =
        (rustix::process::Uid::from_raw(identity.uid), rustix::process::Gid::from_raw(identity.gid));
    rustix::thread::set_thread_groups(&groups).step(|| "set groups")?;
    rustix::thread::set_thread_res_gid(gid, gid, gid).step(|| "set group id")?;
    rustix::thread::set_thread_res_uid(uid, uid, uid).step(|| "set user id")?;
    rustix::thread::set_keep_capabilities(false).step(|| "keep capabilities")?;
    let inheritable = if inherit { set } else { CapabilitySet::empty() };
    rustix::thread::set_capabilities(None, CapabilitySets { effective: set, permitted: set, inheritable })
        .step(|| "set capabilities")?;
    if inherit {
        for bit in 0..64 {
            let capability = CapabilitySet::from_bits_retain(1 << bit);
            if set.contains(capability) {
                rustix::thread::configure_capability_in_ambient_set(capability, true)
                    .step(|| "set ambient capability")?;
            }
        }
    }
    Ok(())
}

/// Becomes the program; comes back only with the reason why not.
fn exec(plan: &Plan, args: &[CString], env: &[CString]) -> Failure {
    let program = &plan.args[0];
    let failure = |reason: String, code| Failure::Program { program: program.clone(), reason, code };
    if program.contains('/') {
        let errno = nix::unistd::execve(&args[0], args, env).expect_err("execve returns only with an error");
        if let Some(foreign) = foreign(program, &args[0], errno) {
            return foreign;
        }
        let code = if matches!(errno, Errno::ENOENT | Errno::ENOTDIR) { 127 } else { 126 };
        return failure(explain(errno), code);
    }
    let path = plan.env.iter().find_map(|entry| entry.strip_prefix("PATH=")).unwrap_or("");
    let mut denied = None;
    for directory in path.split(':') {
        let directory = if directory.is_empty() { "." } else { directory };
        let Ok(candidate) = CString::new(format!("{directory}/{program}")) else { continue };
        let errno =
            nix::unistd::execve(&candidate, args, env).expect_err("execve returns only with an error");
        if let Some(foreign) = foreign(program, &candidate, errno) {
            return foreign;
        }
        match errno {
            Errno::ENOENT | Errno::ENOTDIR | Errno::ELOOP | Errno::ENAMETOOLONG => {}
            Errno::EACCES => denied = Some(Errno::EACCES),
            errno => return failure(explain(errno), 126),
        }
    }
    match denied {
        Some(errno) => failure(explain(errno), 126),
        None => failure("executable file not found in $PATH".to_owned(), 127),
    }
}

/// Whether the kernel did not take the program, or did not find its emulator, because it is for another processor.
fn foreign(program: &str, path: &CString, errno: Errno) -> Option<Failure> {
    let has_emulator = match errno {
        Errno::ENOEXEC => false,
        // The program may be there, and its interpreter not.
        Errno::ENOENT => true,
        _ => return None,
    };
    let mut header = [0; 20];
    let mut file = std::fs::File::open(OsStr::from_bytes(path.as_bytes())).ok()?;
    file.read_exact(&mut header).ok()?;
    let architecture = elf::architecture(&header).filter(|architecture| architecture != elf::native())?;
    // What the processor itself runs lacks its dynamic loader.
    if has_emulator && elf::is_compatible(&architecture) {
        return None;
    }
    Some(Failure::Foreign { program: program.to_owned(), architecture, has_emulator })
}

/// The kernel's words, in lower case as users know them from runc.
fn explain(errno: Errno) -> String {
    errno.desc().to_ascii_lowercase()
}
