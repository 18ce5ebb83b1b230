//! The system calls that neither rustix nor nix wraps safely. The crate's only `unsafe` code.
#![allow(unsafe_code)]

use std::{
    io,
    os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd},
};

use tokio::io::unix::AsyncFd;

/// Which side of [`clone_process`] one is on.
pub(crate) enum Cloned {
    /// The new process.
    Child,
    /// The caller; holds a pidfd of the new process.
    Parent(OwnedFd),
}

/// Linux's `struct clone_args` (include/uapi/linux/sched.h), version 2 (kernel 5.7).
#[repr(C)]
#[derive(Default)]
struct CloneArgs {
    flags: u64,
    pidfd: u64,
    child_tid: u64,
    parent_tid: u64,
    exit_signal: u64,
    stack: u64,
    stack_size: u64,
    tls: u64,
    set_tid: u64,
    set_tid_size: u64,
    cgroup: u64,
}

/// Linux 5.7 (libc's constant is too narrow).
const CLONE_INTO_CGROUP: u64 = 0x2_0000_0000;

/// Forks into new namespaces (`CLONE_NEW*` in `namespaces`), and into the v2 cgroup directory `cgroup` if given.
///
/// Must be called in a process that has one thread; then the child may do anything its parent could.
pub(crate) fn clone_process(namespaces: libc::c_int, cgroup: Option<BorrowedFd<'_>>) -> io::Result<Cloned> {
    let mut pidfd: RawFd = -1;
    let mut args = CloneArgs {
        flags: namespaces as u64 | libc::CLONE_PIDFD as u64,
        pidfd: (&raw mut pidfd) as u64,
        exit_signal: libc::SIGCHLD as u64,
        ..CloneArgs::default()
    };
    if let Some(cgroup) = cgroup {
        args.flags |= CLONE_INTO_CGROUP;
        args.cgroup = cgroup.as_raw_fd() as u64;
    }
    // SAFETY: `args` is a valid clone_args of the size given, `pidfd` outlives the call. Without CLONE_VM and with no
    // stack given this is fork(2): the child runs on a copy of this stack. The only caller has a single thread, so no
    // lock can be held by a thread that the child lacks.
    let result = unsafe { libc::syscall(libc::SYS_clone3, &raw mut args, size_of::<CloneArgs>()) };
    match result {
        -1 => Err(io::Error::last_os_error()),
        0 => Ok(Cloned::Child),
        // SAFETY: the kernel has stored a new descriptor that nothing else owns.
        _ => Ok(Cloned::Parent(unsafe { OwnedFd::from_raw_fd(pidfd) })),
    }
}

/// Linux's `struct mount_attr`.
#[repr(C)]
struct MountAttr {
    attr_set: u64,
    attr_clr: u64,
    propagation: u64,
    userns_fd: u64,
}

/// Sets `MOUNT_ATTR_*` bits of the mount that `mount` is the root of, and of those below it when `recursive`.
pub(crate) fn mount_setattr(mount: BorrowedFd<'_>, set: u64, recursive: bool) -> io::Result<()> {
    let attributes = MountAttr { attr_set: set, attr_clr: 0, propagation: 0, userns_fd: 0 };
    let flags = libc::AT_EMPTY_PATH | if recursive { libc::AT_RECURSIVE } else { 0 };
    // SAFETY: the path is a NUL-terminated string, `attributes` is a valid mount_attr of the size given.
    let result = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            mount.as_raw_fd(),
            c"".as_ptr(),
            flags,
            &raw const attributes,
            size_of::<MountAttr>(),
        )
    };
    if result == -1 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Makes every descriptor from `first` on close at exec.
pub(crate) fn close_on_exec_from(first: RawFd) -> io::Result<()> {
    // SAFETY: sets a flag of descriptors; closes nothing in this process.
    let result =
        unsafe { libc::syscall(libc::SYS_close_range, first, libc::c_uint::MAX, libc::CLOSE_RANGE_CLOEXEC) };
    if result == -1 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// One instruction of classic BPF.
pub(crate) type BpfInstruction = libc::sock_filter;

/// Installs a seccomp filter for this (only) thread. Needs `CAP_SYS_ADMIN` or no_new_privs.
pub(crate) fn install_seccomp(program: &[BpfInstruction]) -> io::Result<()> {
    let length = u16::try_from(program.len()).map_err(|_| io::Error::from_raw_os_error(libc::EINVAL))?;
    let filter = libc::sock_fprog { len: length, filter: program.as_ptr().cast_mut() };
    // SAFETY: `filter` points to `length` instructions that the kernel only reads and copies.
    let result =
        unsafe { libc::syscall(libc::SYS_seccomp, libc::SECCOMP_SET_MODE_FILTER, 0, &raw const filter) };
    if result == -1 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Gives this process a new, empty session keyring.
pub(crate) fn new_session_keyring() -> io::Result<()> {
    const KEYCTL_JOIN_SESSION_KEYRING: libc::c_int = 1;
    // SAFETY: a null name asks for an anonymous keyring; no memory is touched.
    let result = unsafe {
        libc::syscall(libc::SYS_keyctl, KEYCTL_JOIN_SESSION_KEYRING, std::ptr::null::<libc::c_char>())
    };
    if result == -1 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Sets all signals to their default action and unblocks them.
pub(crate) fn reset_signals() {
    // Large enough for every architecture's kernel sigaction; zero means the default action and no flags.
    let default = [0u64; 8];
    // By the kernel's own call: libc keeps some signals to itself, which may have been inherited as ignored.
    for signal in 1..=64 {
        // SAFETY: the kernel reads a sigaction from `default`; SIG_DFL installs no code. Failure for SIGKILL and SIGSTOP
        // is expected.
        unsafe {
            libc::syscall(
                libc::SYS_rt_sigaction,
                signal,
                default.as_ptr(),
                std::ptr::null::<u64>(),
                size_of::<u64>(),
            )
        };
    }
    let none = 0u64;
    // SAFETY: the kernel reads a set of 64 signals; only this thread's mask is set.
    unsafe {
        libc::syscall(
            libc::SYS_rt_sigprocmask,
            libc::SIG_SETMASK,
            &raw const none,
            std::ptr::null::<u64>(),
            size_of::<u64>(),
        )
    };
}

/// Sets one signal to its default action.
pub(crate) fn reset_signal(signal: libc::c_int) {
    // SAFETY: SIG_DFL installs no code.
    unsafe { libc::signal(signal, libc::SIG_DFL) };
}

/// Ignores a signal.
pub(crate) fn ignore_signal(signal: libc::c_int) {
    // SAFETY: SIG_IGN installs no code.
    unsafe { libc::signal(signal, libc::SIG_IGN) };
}

/// Ends the process without running destructors or exit handlers (which belong to the parent's copy).
pub(crate) fn exit_now(code: i32) -> ! {
    // SAFETY: _exit never returns and touches no memory.
    unsafe { libc::_exit(code) }
}

/// A descriptor that the event loop tells about.
pub(crate) fn watched(fd: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: an OwnedFd is open for as long as it lives, and is always the same descriptor.
    Ok(unsafe { AsyncFd::register(fd) }?)
}

/// The other side of the terminal whose multiplexer's side `master` is; unlocked.
pub(crate) fn terminal_of(master: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    let unlocked: libc::c_int = 0;
    // SAFETY: TIOCSPTLCK reads an int.
    if unsafe { libc::ioctl(master.as_raw_fd(), libc::TIOCSPTLCK, &raw const unlocked) } == -1 {
        return Err(io::Error::last_os_error());
    }
    let flags = libc::O_RDWR | libc::O_NOCTTY | libc::O_CLOEXEC;
    // SAFETY: TIOCGPTPEER takes flags by value and touches no memory.
    let peer = unsafe { libc::ioctl(master.as_raw_fd(), libc::TIOCGPTPEER, flags) };
    if peer == -1 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the call has returned a new descriptor that nothing else owns.
    Ok(unsafe { OwnedFd::from_raw_fd(peer) })
}

/// Keeps others of this process's user from its memory and descriptors, until it executes a program.
pub(crate) fn hide_from_debuggers() -> io::Result<()> {
    // SAFETY: sets a flag of this process; no memory is touched.
    let result = unsafe { libc::prctl(libc::PR_SET_DUMPABLE, 0, 0, 0, 0) };
    if result == -1 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Sets the loopback interface of this network namespace up.
pub(crate) fn loopback_up(socket: BorrowedFd<'_>) -> io::Result<()> {
    // SAFETY: an all-zero ifreq is valid; the name is shorter than the field and stays NUL-terminated.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(b"lo") {
        *to = *from as libc::c_char;
    }
    request.ifr_ifru.ifru_flags = (libc::IFF_UP | libc::IFF_RUNNING) as libc::c_short;
    // SAFETY: SIOCSIFFLAGS reads an ifreq.
    let result = unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCSIFFLAGS as _, &raw mut request) };
    if result == -1 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Linux's `union bpf_attr` for the program commands, as far as used (include/uapi/linux/bpf.h).
#[repr(C)]
#[derive(Default)]
struct BpfLoadAttr {
    prog_type: u32,
    insn_cnt: u32,
    insns: u64,
    license: u64,
    log_level: u32,
    log_size: u32,
    log_buf: u64,
    kern_version: u32,
    prog_flags: u32,
}

/// Attaches a device-control program (eBPF instructions) to a v2 cgroup.
pub(crate) fn attach_device_program(cgroup: BorrowedFd<'_>, instructions: &[u64]) -> io::Result<()> {
    const BPF_PROG_LOAD: libc::c_int = 5;
    const BPF_PROG_ATTACH: libc::c_int = 8;
    const BPF_PROG_TYPE_CGROUP_DEVICE: u32 = 15;
    const BPF_CGROUP_DEVICE: u32 = 6;
    const BPF_F_ALLOW_MULTI: u32 = 2;
    let load = BpfLoadAttr {
        prog_type: BPF_PROG_TYPE_CGROUP_DEVICE,
        insn_cnt: u32::try_from(instructions.len()).map_err(|_| io::Error::from_raw_os_error(libc::E2BIG))?,
        insns: instructions.as_ptr() as u64,
        license: c"Apache-2.0".as_ptr() as u64,
        ..BpfLoadAttr::default()
    };
    // SAFETY: `load` describes live memory that the kernel only reads.
    let program =
        unsafe { libc::syscall(libc::SYS_bpf, BPF_PROG_LOAD, &raw const load, size_of::<BpfLoadAttr>()) };
    if program == -1 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the call has returned a new descriptor that nothing else owns.
    let program = unsafe { OwnedFd::from_raw_fd(program as RawFd) };
    let attach: [u32; 4] =
        [cgroup.as_raw_fd() as u32, program.as_raw_fd() as u32, BPF_CGROUP_DEVICE, BPF_F_ALLOW_MULTI];
    // SAFETY: `attach` is the first 16 bytes of bpf_attr for this command; the kernel takes the rest as zero.
    let result =
        unsafe { libc::syscall(libc::SYS_bpf, BPF_PROG_ATTACH, attach.as_ptr(), size_of_val(&attach)) };
    if result == -1 { Err(io::Error::last_os_error()) } else { Ok(()) }
}
