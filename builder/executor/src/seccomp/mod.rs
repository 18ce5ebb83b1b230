//! Which system calls a container may make: Docker's profile format, its conditions, and the filter that it becomes.
//!
//! ```text
//!  JSON profile ── conditions (capabilities, architecture, kernel) ──► rules ── per architecture ──► classic BPF
//! ```
//!
//! `default.json` holds Docker's default policy. Filters are cached by capability set: a build makes thousands of equal ones.

mod bpf;
mod names;

use std::{
    collections::HashMap,
    path::Path,
    sync::{Mutex, PoisonError},
};

use oci_spec::{
    OciSpecError,
    runtime::{LinuxSeccomp, LinuxSeccompAction, LinuxSeccompBuilder, LinuxSyscallBuilder},
};
use serde::{Deserialize, Serialize};

use self::names::Arch;
use crate::{ExecError, bundle::in_oci, caps::CapSet};

/// Docker's default policy.
const DEFAULT: &str = include_str!("default.json");
/// Profiles are short.
const MAX_PROFILE_BYTES: u64 = 4 << 20;

/// A profile, read and checked.
#[derive(Debug)]
pub(crate) struct Profile {
    file: ProfileFile,
    kernel: KernelVersion,
    compiled: Mutex<HashMap<CapSet, Vec<u64>>>,
}

/// As in the file.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct ProfileFile {
    default_action: Action,
    default_errno_ret: Option<u16>,
    #[serde(default)]
    architectures: Vec<String>,
    #[serde(default)]
    arch_map: Vec<ArchMap>,
    #[serde(default)]
    syscalls: Vec<Rule>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct ArchMap {
    architecture: String,
    #[serde(default)]
    sub_architectures: Option<Vec<String>>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Rule {
    #[serde(default)]
    names: Vec<String>,
    /// The old spelling of one name.
    #[serde(default)]
    name: Option<String>,
    action: Action,
    errno_ret: Option<u16>,
    #[serde(default)]
    args: Option<Vec<Condition>>,
    #[serde(default)]
    includes: Option<Filter>,
    #[serde(default)]
    excludes: Option<Filter>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Filter {
    #[serde(default)]
    caps: Vec<String>,
    #[serde(default)]
    arches: Vec<String>,
    #[serde(default)]
    min_kernel: Option<KernelVersion>,
}

/// What happens at a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
enum Action {
    #[serde(rename = "SCMP_ACT_ALLOW")]
    Allow,
    #[serde(rename = "SCMP_ACT_ERRNO")]
    Errno,
    #[serde(rename = "SCMP_ACT_KILL", alias = "SCMP_ACT_KILL_THREAD")]
    KillThread,
    #[serde(rename = "SCMP_ACT_KILL_PROCESS")]
    KillProcess,
    #[serde(rename = "SCMP_ACT_TRAP")]
    Trap,
    #[serde(rename = "SCMP_ACT_LOG")]
    Log,
}

impl Action {
    /// The filter's return value (include/uapi/linux/seccomp.h).
    fn value(self, errno: Option<u16>) -> u32 {
        const EPERM: u16 = 1;
        match self {
            Self::Allow => 0x7fff_0000,
            Self::Errno => 0x0005_0000 | u32::from(errno.unwrap_or(EPERM)),
            Self::KillThread => 0x0000_0000,
            Self::KillProcess => 0x8000_0000,
            Self::Trap => 0x0003_0000,
            Self::Log => 0x7ffc_0000,
        }
    }
}

/// A comparison of one argument.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Condition {
    index: u8,
    value: u64,
    #[serde(default)]
    value_two: u64,
    op: Comparison,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
enum Comparison {
    #[serde(rename = "SCMP_CMP_NE")]
    NotEqual,
    #[serde(rename = "SCMP_CMP_LT")]
    Less,
    #[serde(rename = "SCMP_CMP_LE")]
    LessOrEqual,
    #[serde(rename = "SCMP_CMP_EQ")]
    Equal,
    #[serde(rename = "SCMP_CMP_GE")]
    GreaterOrEqual,
    #[serde(rename = "SCMP_CMP_GT")]
    Greater,
    /// Argument & value == value two.
    #[serde(rename = "SCMP_CMP_MASKED_EQ")]
    MaskedEqual,
}

/// `4.8`
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
#[serde(try_from = "String")]
struct KernelVersion(u32, u32);

impl TryFrom<String> for KernelVersion {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        Self::parse(&text).ok_or(format!("invalid kernel version {text:?}"))
    }
}

impl KernelVersion {
    /// From the start of `uname -r`'s output.
    fn parse(text: &str) -> Option<Self> {
        let mut numbers = text.split(|c: char| !c.is_ascii_digit());
        Some(Self(numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
    }

    fn running() -> Self {
        let uname = rustix::system::uname();
        Self::parse(&uname.release().to_string_lossy()).unwrap_or(Self(0, 0))
    }
}

/// A rule whose conditions on the machine and the container hold.
#[derive(Debug, Clone)]
struct ActiveRule<'a> {
    names: Vec<&'a str>,
    /// The filter's return value.
    action: u32,
    args: &'a [Condition],
}

impl Profile {
    /// Reads the profile at `path`; `None` means Docker's default.
    pub(crate) fn load(path: Option<&Path>) -> Result<Self, ExecError> {
        let text = match path {
            None => DEFAULT.to_owned(),
            Some(path) => {
                let mut text = String::new();
                std::fs::File::open(path)
                    .and_then(|file| {
                        std::io::Read::read_to_string(
                            &mut std::io::Read::take(file, MAX_PROFILE_BYTES),
                            &mut text,
                        )
                    })
                    .map_err(|source| ExecError::Setup {
                        step: format!("read seccomp profile {}", path.display()),
                        source,
                    })?;
                text
            }
        };
        Self::parse(&text, KernelVersion::running()).map_err(|error| match (error, path) {
            (ExecError::Invalid { field, value, reason }, Some(path)) => {
                ExecError::Invalid { field, value: format!("{}: {value}", path.display()), reason }
            }
            (error, _) => error,
        })
    }

    fn parse(text: &str, kernel: KernelVersion) -> Result<Self, ExecError> {
        let file: ProfileFile = serde_json::from_str(text).map_err(|error| ExecError::Invalid {
            field: "seccomp profile",
            value: error.to_string(),
            reason: "is not a profile in Docker's JSON format",
        })?;
        let bad = |value: &str, reason| ExecError::Invalid {
            field: "seccomp profile",
            value: value.to_owned(),
            reason,
        };
        if !file.architectures.is_empty() && !file.arch_map.is_empty() {
            return Err(bad("architectures", "has both architectures and archMap"));
        }
        for rule in &file.syscalls {
            if rule.name.is_some() && !rule.names.is_empty() {
                return Err(bad(&rule.names[0], "has a rule with both name and names"));
            }
            if let Some(condition) = rule.args.iter().flatten().find(|condition| condition.index > 5) {
                return Err(bad(&condition.index.to_string(), "compares an argument beyond the sixth"));
            }
        }
        Ok(Self { file, kernel, compiled: Mutex::default() })
    }

    /// The filter for a container with `caps` in its bounding set, for this machine's architecture.
    pub(crate) fn compile(&self, caps: CapSet) -> Result<Vec<u64>, ExecError> {
        let mut compiled = self.compiled.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(program) = compiled.get(&caps) {
            return Ok(program.clone());
        }
        let rules = self.active(caps);
        let default = self.file.default_action.value(self.file.default_errno_ret);
        let program = bpf::compile(&self.architectures(), default, &rules).ok_or(ExecError::Invalid {
            field: "seccomp profile",
            value: String::new(),
            reason: "is too long for a filter",
        })?;
        compiled.insert(caps, program.clone());
        Ok(program)
    }

    /// The same as `linux.seccomp` of an OCI bundle.
    pub(crate) fn oci(&self, caps: CapSet) -> Result<LinuxSeccomp, ExecError> {
        let syscalls = self.file.syscalls.iter().filter(|rule| self.holds(rule, caps)).map(|rule| {
            let mut syscall = LinuxSyscallBuilder::default()
                .names(names(rule).into_iter().map(str::to_owned).collect::<Vec<_>>())
                .action(in_oci::<LinuxSeccompAction>(&rule.action)?)
                .args(rule.args.iter().flatten().map(in_oci).collect::<Result<Vec<_>, _>>()?);
            if let Some(errno) = rule.errno_ret {
                syscall = syscall.errno_ret(errno);
            }
            syscall.build()
        });
        let build = || {
            let mut seccomp = LinuxSeccompBuilder::default()
                .default_action(in_oci::<LinuxSeccompAction>(&self.file.default_action)?)
                .architectures(
                    self.architectures()
                        .iter()
                        .map(|arch| in_oci(&arch.oci_name()))
                        .collect::<Result<Vec<_>, _>>()?,
                )
                .syscalls(syscalls.collect::<Result<Vec<_>, OciSpecError>>()?);
            if let Some(errno) = self.file.default_errno_ret {
                seccomp = seccomp.default_errno_ret(errno);
            }
            seccomp.build()
        };
        build().map_err(|error| ExecError::Invalid {
            field: "seccomp profile",
            value: error.to_string(),
            reason: "is nothing that an OCI runtime is told",
        })
    }

    /// This machine's architecture and those whose programs it also runs.
    fn architectures(&self) -> Vec<Arch> {
        let native = Arch::NATIVE;
        let mut all = vec![native];
        let named = self
            .file
            .arch_map
            .iter()
            .filter(|map| map.architecture == native.oci_name())
            .flat_map(|map| map.sub_architectures.iter().flatten())
            .chain(&self.file.architectures);
        for name in named {
            if let Some(arch) = Arch::from_oci_name(name)
                && !all.contains(&arch)
            {
                all.push(arch);
            }
        }
        all
    }

    fn active(&self, caps: CapSet) -> Vec<ActiveRule<'_>> {
        self.file
            .syscalls
            .iter()
            .filter(|rule| self.holds(rule, caps))
            .map(|rule| ActiveRule {
                names: names(rule),
                action: rule.action.value(rule.errno_ret),
                args: rule.args.as_deref().unwrap_or_default(),
            })
            .collect()
    }

    fn holds(&self, rule: &Rule, caps: CapSet) -> bool {
        let arch = |filter: &Filter| filter.arches.iter().any(|arch| arch == Arch::NATIVE.docker_name());
        let kernel = |filter: &Filter| filter.min_kernel.is_some_and(|least| self.kernel >= least);
        let excluded = rule.excludes.as_ref().is_some_and(|filter| {
            arch(filter) || kernel(filter) || filter.caps.iter().any(|cap| caps.contains(cap))
        });
        let included = rule.includes.as_ref().is_none_or(|filter| {
            (filter.arches.is_empty() || arch(filter))
                && (filter.min_kernel.is_none() || kernel(filter))
                && filter.caps.iter().all(|cap| caps.contains(cap))
        });
        included && !excluded
    }
}

fn names(rule: &Rule) -> Vec<&str> {
    rule.names.iter().chain(&rule.name).map(String::as_str).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::caps::DOCKER_DEFAULT;

    #[cfg(target_arch = "x86_64")]
    const NATIVE: u32 = 0xc000_003e;
    #[cfg(target_arch = "aarch64")]
    const NATIVE: u32 = 0xc000_00b7;
    const ALLOW: u32 = 0x7fff_0000;
    const EPERM: u32 = 0x0005_0001;
    const ENOSYS: u32 = 0x0005_0026;

    fn filter(caps: CapSet) -> impl Fn(i64, [u64; 6]) -> u32 {
        let program = Profile::load(None).unwrap().compile(caps).unwrap();
        move |number, args| bpf::tests::interpret(&program, NATIVE, number as u32, args)
    }

    fn is_known(call: &str) -> bool {
        [Arch::X86_64, Arch::X86, Arch::X32, Arch::Aarch64, Arch::Arm]
            .iter()
            .any(|arch| arch.number(call).is_some())
    }

    #[test]
    fn the_default_profile_knows_only_known_calls() {
        let profile = Profile::load(None).unwrap();
        let allowed = profile.file.syscalls.iter().flat_map(names).collect::<std::collections::BTreeSet<_>>();
        let unknown: Vec<_> = allowed.into_iter().filter(|name| !is_known(name)).collect();
        assert_eq!(unknown, [] as [&str; 0]);
    }

    /// A profile as a set of facts, one per call and rule: of the calls and processors that this crate knows.
    fn facts(profile: &str) -> String {
        let document: serde_json::Value = serde_json::from_str(profile).unwrap();
        let mut facts = std::collections::BTreeSet::new();
        facts.insert(format!("otherwise {} {}", document["defaultAction"], document["defaultErrnoRet"]));
        for rule in document["syscalls"].as_array().unwrap() {
            let only: Option<Vec<&str>> = rule["includes"]["arches"].as_array().map(|all| {
                let mut all: Vec<_> = all.iter().filter_map(|one| one.as_str()).collect();
                all.retain(|one| ["amd64", "x86", "x32", "arm64", "arm"].contains(one));
                all.sort_unstable();
                all
            });
            let argument = |one: &serde_json::Value| {
                let two = one["valueTwo"].as_u64().unwrap_or(0);
                format!("{} {} {} {two}", one["index"], one["op"], one["value"])
            };
            let arguments: Vec<_> = rule["args"].as_array().into_iter().flatten().map(argument).collect();
            let filter = |filter: &serde_json::Value| format!("{} {}", filter["caps"], filter["minKernel"]);
            for name in rule["names"].as_array().unwrap().iter().filter_map(|name| name.as_str()) {
                if only.as_ref().is_some_and(Vec::is_empty) || !is_known(name) {
                    continue;
                }
                facts.insert(format!(
                    "{name}: {} {} {arguments:?} on {only:?} with {} but {}",
                    rule["action"],
                    rule["errnoRet"],
                    filter(&rule["includes"]),
                    filter(&rule["excludes"]),
                ));
            }
        }
        facts.into_iter().map(|fact| fact + "\n").collect()
    }

    #[test]
    fn the_default_profile_says_what_dockers_does() {
        use sha2::Digest as _;
        let facts = facts(DEFAULT);
        // That of seccomp/default.json in github.com/moby/profiles, seccomp v0.2.3 (Docker 29, BuildKit 0.29).
        assert_eq!(
            hex::encode(sha2::Sha256::digest(&facts)),
            "0aecf77be5d726b6e0fc6440b458e220f747c5bbfb32228d5d0f1497d471928c",
            "{facts}"
        );
    }

    #[test]
    fn ordinary_calls_pass_and_dangerous_ones_do_not() {
        let filter = filter(DOCKER_DEFAULT);
        for number in [libc::SYS_read, libc::SYS_execve, libc::SYS_openat, libc::SYS_chroot, libc::SYS_ptrace]
        {
            assert_eq!(filter(number, [0; 6]), ALLOW, "{number}");
        }
        for number in [
            libc::SYS_mount,
            libc::SYS_bpf,
            libc::SYS_keyctl,
            libc::SYS_unshare,
            libc::SYS_kexec_load,
            libc::SYS_open_by_handle_at,
            libc::SYS_init_module,
            libc::SYS_io_uring_setup,
        ] {
            assert_eq!(filter(number, [0; 6]), EPERM, "{number}");
        }
    }

    #[test]
    fn arguments_decide() {
        let filter = filter(DOCKER_DEFAULT);
        let thread = (libc::CLONE_VM | libc::CLONE_FS | libc::CLONE_THREAD) as u64;
        assert_eq!(filter(libc::SYS_clone, [thread, 0, 0, 0, 0, 0]), ALLOW);
        assert_eq!(filter(libc::SYS_clone, [libc::CLONE_NEWUSER as u64, 0, 0, 0, 0, 0]), EPERM);
        assert_eq!(filter(libc::SYS_clone3, [0; 6]), ENOSYS);
        assert_eq!(filter(libc::SYS_socket, [libc::AF_INET as u64, 0, 0, 0, 0, 0]), ALLOW);
        assert_eq!(filter(libc::SYS_socket, [libc::AF_ALG as u64, 0, 0, 0, 0, 0]), EPERM);
        assert_eq!(filter(libc::SYS_socket, [libc::AF_VSOCK as u64, 0, 0, 0, 0, 0]), EPERM);
        assert_eq!(filter(libc::SYS_personality, [0xffff_ffff, 0, 0, 0, 0, 0]), ALLOW);
        assert_eq!(filter(libc::SYS_personality, [0x0400_0000, 0, 0, 0, 0, 0]), EPERM);
        // The upper half of an argument counts.
        assert_eq!(filter(libc::SYS_personality, [1 << 32, 0, 0, 0, 0, 0]), EPERM);
    }

    #[test]
    fn capabilities_open_what_belongs_to_them() {
        let filter = filter(CapSet::all());
        for number in [libc::SYS_mount, libc::SYS_bpf, libc::SYS_clone3, libc::SYS_unshare, libc::SYS_syslog]
        {
            assert_eq!(filter(number, [0; 6]), ALLOW, "{number}");
        }
        assert_eq!(filter(libc::SYS_clone, [libc::CLONE_NEWUSER as u64, 0, 0, 0, 0, 0]), ALLOW);
    }

    #[test]
    fn calls_newer_than_the_profile_do_not_exist() {
        assert_eq!(filter(DOCKER_DEFAULT)(5000, [0; 6]), ENOSYS);
    }

    #[test]
    #[cfg(target_arch = "x86_64")]
    fn the_other_architectures_of_the_machine_have_filters_of_their_own() {
        let program = Profile::load(None).unwrap().compile(DOCKER_DEFAULT).unwrap();
        let run = |arch, number| bpf::tests::interpret(&program, arch, number, [0; 6]);
        const I386: u32 = 0x4000_0003;
        assert_eq!(run(I386, 3), ALLOW, "read");
        assert_eq!(run(I386, 21), EPERM, "mount");
        assert_eq!(run(NATIVE, 0x4000_0000), ALLOW, "x32 read");
        assert_eq!(run(NATIVE, 0x4000_0000 + 165), EPERM, "x32 mount");
        assert_eq!(run(NATIVE, 0x4000_0000 + 520), ALLOW, "x32 execve");
        assert_eq!(run(0xc000_00b7, 63), 0, "a foreign architecture kills");
    }

    #[test]
    fn kernel_versions_are_compared_as_numbers() {
        let rule = r#"{"defaultAction": "SCMP_ACT_ERRNO", "syscalls": [
            {"names": ["read"], "action": "SCMP_ACT_ALLOW", "includes": {"minKernel": "4.8"}}]}"#;
        let active = |version: &str| {
            Profile::parse(rule, KernelVersion::parse(version).unwrap()).unwrap().active(DOCKER_DEFAULT).len()
        };
        assert_eq!(active("4.7.99-generic"), 0);
        assert_eq!(active("4.8"), 1);
        assert_eq!(active("4.10.1"), 1);
    }

    #[test]
    fn bad_profiles_are_refused_by_name() {
        for text in ["{", r#"{"defaultAction": "SCMP_ACT_DANCE"}"#] {
            let error = Profile::parse(text, KernelVersion(6, 1)).unwrap_err();
            assert!(matches!(error, ExecError::Invalid { field: "seccomp profile", .. }), "{error}");
        }
    }
}
