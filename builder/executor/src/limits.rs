//! What processes may use of the machine, and which of it means something: dockerd's rules, in its words.

use std::{collections::BTreeSet, fs};

use serde::{Deserialize, Serialize};

use crate::ExecError;

/// dockerd's: less does not start a process.
const MIN_MEMORY: u64 = 6 << 20;
/// Docker's and BuildKit's: no machine has more CPUs or memory nodes.
const MAX_CPU: u32 = 8192;

/// Linux's resource limits by the names of `docker build --ulimit`, with their numbers (asm-generic/resource.h).
const RLIMITS: [(&str, u32); 16] = [
    ("cpu", 0),
    ("fsize", 1),
    ("data", 2),
    ("stack", 3),
    ("core", 4),
    ("rss", 5),
    ("nproc", 6),
    ("nofile", 7),
    ("memlock", 8),
    ("as", 9),
    ("locks", 10),
    ("sigpending", 11),
    ("msgqueue", 12),
    ("nice", 13),
    ("rtprio", 14),
    ("rttime", 15),
];

/// Limits on all processes of a run together. `None` means no limit. A limit that cannot be set fails the run.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Resources {
    /// Bytes of memory.
    pub memory: Option<u64>,
    /// Bytes of memory and swap together; `-1` means unlimited swap. When not said, twice the memory, on machines that can limit it.
    pub memory_swap: Option<i64>,
    /// Relative weight, 2 to 262144; 1024 is everyone's default. What is beyond counts as the nearest.
    pub cpu_shares: Option<u64>,
    /// Length of a scheduling period in microseconds, 1000 to 1000000.
    pub cpu_period: Option<u64>,
    /// Microseconds of CPU time per period.
    pub cpu_quota: Option<i64>,
    /// CPUs to run on, as `0-2,7`.
    pub cpuset_cpus: Option<String>,
    /// Memory nodes to use, as `0-1`.
    pub cpuset_mems: Option<String>,
    /// Number of processes and threads.
    pub pids: Option<u64>,
    /// Size of `/dev/shm` in bytes; `None` means 64 MiB.
    pub shm_size: Option<u64>,
}

impl Resources {
    /// Whether there is nothing that cgroups would have to hold.
    pub(crate) fn need_no_cgroup(&self) -> bool {
        Self { shm_size: None, ..self.clone() } == Self::default()
    }

    /// Whether these can be set on this machine, as far as that is known before.
    ///
    /// Errors: [`ExecError::BadLimit`].
    pub fn check(&self) -> Result<(), ExecError> {
        let list = |path: &str| fs::read_to_string(path).ok().map(|text| text.trim().to_owned());
        let cpus = self.cpuset_cpus.as_ref().and_then(|_| list("/sys/devices/system/cpu/online"));
        let mems = self.cpuset_mems.as_ref().and_then(|_| list("/sys/devices/system/node/online"));
        self.check_on(cpus.as_deref(), mems.as_deref())
    }

    /// The same on a machine with these CPUs and memory nodes; `None` where it does not say.
    fn check_on(&self, cpus: Option<&str>, mems: Option<&str>) -> Result<(), ExecError> {
        let bad = |why: &str| Err(ExecError::BadLimit(why.to_owned()));
        if self.memory.is_some_and(|memory| memory < MIN_MEMORY) {
            return bad("Minimum memory limit allowed is 6MB");
        }
        if self.memory.is_some_and(|memory| i64::try_from(memory).is_err()) {
            return bad("memory limit is larger than any machine's");
        }
        match (self.memory, self.memory_swap) {
            (_, Some(swap)) if swap < -1 => {
                return bad("memory-swap is -1 for unlimited swap, or a number of bytes");
            }
            (None, Some(0..)) => {
                return bad("You should always set the Memory limit when using Memoryswap limit, see usage");
            }
            (Some(memory), Some(swap)) if u64::try_from(swap).is_ok_and(|swap| swap < memory) => {
                return bad("Minimum memoryswap limit should be larger than memory limit, see usage");
            }
            _ => {}
        }
        if self.cpu_period.is_some_and(|period| !(1000..=1_000_000).contains(&period)) {
            return bad(
                "CPU cfs period can not be less than 1ms (i.e. 1000) or larger than 1s (i.e. 1000000)",
            );
        }
        match self.cpu_quota {
            Some(quota) if quota < -1 => {
                return bad("CPU cfs quota is -1 for no limit, or a number of microseconds");
            }
            Some(quota) if (0..1000).contains(&quota) => {
                return bad("CPU cfs quota can not be less than 1ms (i.e. 1000)");
            }
            _ => {}
        }
        check_set(self.cpuset_cpus.as_deref(), cpus, "cpuset cpus", "CPUs")?;
        check_set(self.cpuset_mems.as_deref(), mems, "cpuset mems", "memory nodes")
    }
}

/// Whether a list names what there is.
fn check_set(wanted: Option<&str>, available: Option<&str>, what: &str, of: &str) -> Result<(), ExecError> {
    let Some(wanted) = wanted else { return Ok(()) };
    let set = parse_set(wanted)
        .map_err(|why| ExecError::BadLimit(format!("Invalid value {wanted} for {what}: {why}")))?;
    match available.map(|text| (text, parse_set(text))) {
        Some((available, Ok(there))) if !set.is_subset(&there) => Err(ExecError::BadLimit(format!(
            "Requested {of} are not available - requested {wanted}, available: {available}"
        ))),
        _ => Ok(()),
    }
}

/// `0-3,7`.
fn parse_set(text: &str) -> Result<BTreeSet<u32>, String> {
    let malformed = || format!("invalid format: {text}");
    let number = |text: &str| {
        let is_plain = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
        let number = text.parse::<u32>().ok().filter(|number| *number <= MAX_CPU);
        if !is_plain {
            Err(malformed())
        } else {
            number.ok_or(format!("value of out range, maximum is {MAX_CPU}"))
        }
    };
    let mut set = BTreeSet::new();
    for part in text.split(',') {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let (first, last) = (number(first)?, number(last)?);
        if first > last {
            return Err(malformed());
        }
        set.extend(first..=last);
    }
    Ok(set)
}

/// One resource limit of a process, by its name as `docker build --ulimit` has it (`nofile`, `nproc`, `core` …).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ulimit {
    /// The name, without `RLIMIT_`.
    pub name: String,
    /// Soft limit; `-1` means none.
    pub soft: i64,
    /// Hard limit; `-1` means none.
    pub hard: i64,
}

impl Ulimit {
    /// Whether it can be set.
    ///
    /// Errors: [`ExecError::BadLimit`].
    pub fn check(&self) -> Result<(), ExecError> {
        self.rlimit().map(drop)
    }

    pub(crate) fn rlimit(&self) -> Result<Rlimit, ExecError> {
        let name = self.name.to_ascii_lowercase();
        let Some(&(_, resource)) = RLIMITS.iter().find(|(known, _)| *known == name) else {
            return Err(ExecError::BadLimit(format!("invalid ulimit type: {}", self.name)));
        };
        let value = |value: i64| match value {
            -1 => Ok(u64::MAX),
            0.. => Ok(value.unsigned_abs()),
            _ => Err(ExecError::BadLimit(format!(
                "ulimit {name} is -1 for no limit, or not negative: {value}"
            ))),
        };
        let (soft, hard) = (value(self.soft)?, value(self.hard)?);
        if soft > hard {
            return Err(ExecError::BadLimit(format!(
                "ulimit soft limit must be less than or equal to hard limit: {} > {}",
                self.soft, self.hard
            )));
        }
        Ok(Rlimit { name, resource, soft, hard })
    }
}

/// One resource limit, by its kernel number and its name.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Rlimit {
    pub(crate) name: String,
    pub(crate) resource: u32,
    pub(crate) soft: u64,
    pub(crate) hard: u64,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(change: impl FnOnce(&mut Resources)) -> String {
        let mut resources = Resources::default();
        change(&mut resources);
        match resources.check_on(Some("0-3"), Some("0")) {
            Ok(()) => String::new(),
            Err(error) => error.to_string(),
        }
    }

    #[test]
    fn what_dockerd_refuses_is_refused_in_its_words() {
        assert_eq!(refused(|r| r.memory = Some((6 << 20) - 1)), "Minimum memory limit allowed is 6MB");
        assert_eq!(
            refused(|r| (r.memory, r.memory_swap) = (Some(20 << 20), Some(10 << 20))),
            "Minimum memoryswap limit should be larger than memory limit, see usage"
        );
        assert_eq!(
            refused(|r| r.memory_swap = Some(10 << 20)),
            "You should always set the Memory limit when using Memoryswap limit, see usage"
        );
        for period in [1, 999, 1_000_001] {
            assert_eq!(
                refused(|r| r.cpu_period = Some(period)),
                "CPU cfs period can not be less than 1ms (i.e. 1000) or larger than 1s (i.e. 1000000)"
            );
        }
        assert_eq!(
            refused(|r| r.cpu_quota = Some(999)),
            "CPU cfs quota can not be less than 1ms (i.e. 1000)"
        );
        for text in ["0-42,,", "a", "", "3-1", "-1", "0-", "+1", "0; rm"] {
            assert_eq!(
                refused(|r| r.cpuset_cpus = Some(text.to_owned())),
                format!("Invalid value {text} for cpuset cpus: invalid format: {text}")
            );
        }
        assert!(refused(|r| r.cpuset_cpus = Some("0-4294967295".to_owned())).contains("maximum is 8192"));
        assert_eq!(
            refused(|r| r.cpuset_cpus = Some("2-4".to_owned())),
            "Requested CPUs are not available - requested 2-4, available: 0-3"
        );
        assert_eq!(
            refused(|r| r.cpuset_mems = Some("1".to_owned())),
            "Requested memory nodes are not available - requested 1, available: 0"
        );
    }

    #[test]
    fn what_dockerd_takes_is_taken() {
        let all = Resources {
            memory: Some(6 << 20),
            memory_swap: Some(6 << 20),
            cpu_shares: Some(1),
            cpu_period: Some(1000),
            cpu_quota: Some(1000),
            cpuset_cpus: Some("0,2-3".to_owned()),
            cpuset_mems: Some("0".to_owned()),
            pids: Some(1),
            shm_size: Some(1),
        };
        all.check_on(Some("0-3"), Some("0")).unwrap();
        // A machine that does not say.
        all.check_on(None, None).unwrap();
        assert_eq!(refused(|r| (r.memory_swap, r.cpu_quota) = (Some(-1), Some(-1))), "");
        assert!(Resources { shm_size: Some(1), ..Resources::default() }.need_no_cgroup());
        assert!(!all.need_no_cgroup());
    }

    #[test]
    fn ulimits_are_known_by_name_and_in_order() {
        let limit = |name: &str, soft, hard| Ulimit { name: name.to_owned(), soft, hard };
        assert_eq!(limit("NOFILE", 1, -1).rlimit().unwrap().hard, u64::MAX);
        let refused = |limit: Ulimit| limit.check().unwrap_err().to_string();
        assert_eq!(refused(limit("fingers", 1, 1)), "invalid ulimit type: fingers");
        assert_eq!(
            refused(limit("nofile", 2, 1)),
            "ulimit soft limit must be less than or equal to hard limit: 2 > 1"
        );
        assert!(refused(limit("nofile", -1, 5)).contains("-1 > 5"));
        assert!(refused(limit("nofile", -2, 5)).contains("-2"));
    }
}
