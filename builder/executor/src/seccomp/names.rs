//! Architectures, and their system calls' numbers.

/// An architecture that a filter may cover.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Arch {
    X86_64,
    /// 32-bit pointers on x86-64: the same `AUDIT_ARCH`, numbers with a bit set.
    X32,
    X86,
    Aarch64,
    Arm,
}

/// Bit 30 of the number says x32 (`__X32_SYSCALL_BIT`).
pub(super) const X32_BIT: u32 = 0x4000_0000;

/// Calls that x32 has under numbers of its own (arch/x86/entry/syscalls/syscall_64.tbl, ABI x32).
const X32_OWN: [(&str, u32); 36] = [
    ("rt_sigaction", 512),
    ("rt_sigreturn", 513),
    ("ioctl", 514),
    ("readv", 515),
    ("writev", 516),
    ("recvfrom", 517),
    ("sendmsg", 518),
    ("recvmsg", 519),
    ("execve", 520),
    ("ptrace", 521),
    ("rt_sigpending", 522),
    ("rt_sigtimedwait", 523),
    ("rt_sigqueueinfo", 524),
    ("sigaltstack", 525),
    ("timer_create", 526),
    ("mq_notify", 527),
    ("kexec_load", 528),
    ("waitid", 529),
    ("set_robust_list", 530),
    ("get_robust_list", 531),
    ("vmsplice", 532),
    ("move_pages", 533),
    ("preadv", 534),
    ("pwritev", 535),
    ("rt_tgsigqueueinfo", 536),
    ("recvmmsg", 537),
    ("sendmmsg", 538),
    ("process_vm_readv", 539),
    ("process_vm_writev", 540),
    ("setsockopt", 541),
    ("getsockopt", 542),
    ("io_setup", 543),
    ("io_submit", 544),
    ("execveat", 545),
    ("preadv2", 546),
    ("pwritev2", 547),
];

/// ARM's private calls, and a second name of arm_sync_file_range (arch/arm/include/uapi/asm/unistd.h).
const ARM_PRIVATE: [(&str, u32); 4] = [
    ("breakpoint", 0x000f_0001),
    ("cacheflush", 0x000f_0002),
    ("set_tls", 0x000f_0005),
    ("sync_file_range2", 341),
];

impl Arch {
    /// The architecture that this program runs on.
    #[cfg(target_arch = "x86_64")]
    pub(super) const NATIVE: Self = Self::X86_64;
    /// The architecture that this program runs on.
    #[cfg(target_arch = "aarch64")]
    pub(super) const NATIVE: Self = Self::Aarch64;

    /// `SCMP_ARCH_…`
    pub(super) fn oci_name(self) -> &'static str {
        match self {
            Self::X86_64 => "SCMP_ARCH_X86_64",
            Self::X32 => "SCMP_ARCH_X32",
            Self::X86 => "SCMP_ARCH_X86",
            Self::Aarch64 => "SCMP_ARCH_AARCH64",
            Self::Arm => "SCMP_ARCH_ARM",
        }
    }

    pub(super) fn from_oci_name(name: &str) -> Option<Self> {
        [Self::X86_64, Self::X32, Self::X86, Self::Aarch64, Self::Arm]
            .into_iter()
            .find(|arch| arch.oci_name() == name)
    }

    /// As `arches` of a profile's conditions spell it.
    pub(super) fn docker_name(self) -> &'static str {
        match self {
            Self::X86_64 => "amd64",
            Self::X32 => "x32",
            Self::X86 => "x86",
            Self::Aarch64 => "arm64",
            Self::Arm => "arm",
        }
    }

    /// `AUDIT_ARCH_*` (include/uapi/linux/audit.h).
    pub(super) fn audit(self) -> u32 {
        match self {
            Self::X86_64 | Self::X32 => 0xc000_003e,
            Self::X86 => 0x4000_0003,
            Self::Aarch64 => 0xc000_00b7,
            Self::Arm => 0x4000_0028,
        }
    }

    /// The number of the call `name`, if the architecture has it.
    pub(super) fn number(self, name: &str) -> Option<u32> {
        match self {
            Self::X86_64 => name.parse::<syscalls::x86_64::Sysno>().ok().map(|call| call.id() as u32),
            Self::X86 => name.parse::<syscalls::x86::Sysno>().ok().map(|call| call.id() as u32),
            Self::Aarch64 => name.parse::<syscalls::aarch64::Sysno>().ok().map(|call| call.id() as u32),
            Self::Arm => {
                name.parse::<syscalls::arm::Sysno>().ok().map(|call| call.id() as u32).or_else(|| {
                    ARM_PRIVATE.iter().find(|(known, _)| *known == name).map(|(_, number)| *number)
                })
            }
            Self::X32 => X32_OWN
                .iter()
                .find(|(known, _)| *known == name)
                .map(|(_, number)| *number)
                .or_else(|| Self::X86_64.number(name))
                .map(|number| number | X32_BIT),
        }
    }
}
