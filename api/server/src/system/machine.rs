//! What the kernel says of this machine. What cannot be read is left as it was: `/info` is for people.

use std::{fs, path::Path};

use lapstrake_api_types::{Info, Limits};

/// Fills in what belongs to the machine and to this process.
pub(super) fn describe(info: &mut Info) {
    info.limits = limits();
    info.cgroup_version = if has_cgroup2() { "2" } else { "1" }.to_owned();
    info.kernel_version = kernel_version();
    info.name = rustix::system::uname().nodename().to_string_lossy().into_owned();
    info.architecture = rustix::system::uname().machine().to_string_lossy().into_owned();
    let release = fs::read_to_string("/etc/os-release").unwrap_or_default();
    info.operating_system = field(&release, "PRETTY_NAME").unwrap_or_else(|| "Linux".to_owned());
    info.os_version = field(&release, "VERSION_ID").unwrap_or_default();
    info.cpus = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    info.memory = memory();
    info.file_descriptors = fs::read_dir("/proc/self/fd").map_or(0, Iterator::count);
    info.tasks = tokio::runtime::Handle::try_current().map_or(0, |handle| handle.metrics().num_alive_tasks());
}

pub(super) fn kernel_version() -> String {
    rustix::system::uname().release().to_string_lossy().into_owned()
}

/// The architecture in Go's words.
pub(super) fn go_arch() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        "x86" => "386",
        "powerpc64" => "ppc64le",
        other => other,
    }
}

fn has_cgroup2() -> bool {
    Path::new("/sys/fs/cgroup/cgroup.controllers").exists()
}

fn limits() -> Limits {
    if !has_cgroup2() {
        let has = |file: &str| Path::new("/sys/fs/cgroup").join(file).exists();
        return Limits {
            memory: has("memory/memory.limit_in_bytes"),
            swap: has("memory/memory.memsw.limit_in_bytes"),
            cpu_quota: has("cpu/cpu.cfs_quota_us"),
            cpu_shares: has("cpu/cpu.shares"),
            cpu_set: has("cpuset/cpuset.cpus"),
            pids: has("pids"),
        };
    }
    let controllers = fs::read_to_string("/sys/fs/cgroup/cgroup.controllers").unwrap_or_default();
    let has = |name: &str| controllers.split_whitespace().any(|controller| controller == name);
    Limits {
        memory: has("memory"),
        swap: has("memory"),
        cpu_quota: has("cpu"),
        cpu_shares: has("cpu"),
        cpu_set: has("cpuset"),
        pids: has("pids"),
    }
}

fn memory() -> u64 {
    let text = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix("MemTotal:"));
    line.and_then(|line| line.split_whitespace().next()?.parse::<u64>().ok()).unwrap_or(0) * 1024
}

fn field(release: &str, name: &str) -> Option<String> {
    let value = release.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix('='))?;
    Some(value.trim_matches(['"', '\'']).to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_of_os_release_are_unquoted() {
        let release = "NAME=\"Debian\"\nPRETTY_NAME=\"Debian GNU/Linux 12\"\nVERSION_ID='12'\n";
        assert_eq!(field(release, "PRETTY_NAME").unwrap(), "Debian GNU/Linux 12");
        assert_eq!(field(release, "VERSION_ID").unwrap(), "12");
        assert_eq!(field(release, "VERSION"), None);
    }

    #[test]
    fn this_machine_has_memory_and_processors() {
        let mut info = Info::default();
        describe(&mut info);
        assert!(info.memory > 0 && info.cpus > 0 && !info.kernel_version.is_empty());
    }
}
