//! An ordinary user of this machine, made for a test: known to the programs that it runs, and to nobody else.
//!
//! `newuidmap` looks its caller up in `/etc/passwd` and `/etc/subuid`. A command of the user's runs in a mount namespace of its own, where those files
//! have one line more; the machine's are not touched.

use std::{
    ffi::OsStr,
    fs::{self, File},
    os::unix::fs::{PermissionsExt as _, chown},
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use tempfile::TempDir;

use crate::{Docker, Process, daemon::program, wait_for_socket};

/// An id that nobody has, and a range of them.
const ID: u32 = 54_321;
const FIRST: u32 = 1_900_000_000;
const NAME: &str = "lapstrake-test";

/// Mounts the files over the machine's, and the program where the user can reach it; then becomes the user.
const ENTER: &str = "set -e; dir=$1; program=$2; id=$3; shift 3; \
    for file in passwd subuid subgid; do [ ! -e $dir/etc/$file ] || mount --bind $dir/etc/$file /etc/$file; done; \
    mount --bind \"$program\" $dir/bin/lapstrake; cd $dir/home; \
    exec setpriv --reuid $id --regid $id --clear-groups \"$@\"";

/// An ordinary user with a home, and an empty store in it.
#[derive(Debug)]
pub struct OrdinaryUser {
    dir: TempDir,
}

impl OrdinaryUser {
    /// One who has 65536 subordinate ids.
    pub fn new() -> Self {
        Self::with_ids(65_536)
    }

    /// One who has so many.
    pub fn with_ids(count: u32) -> Self {
        crate::require("newuidmap", "uidmap");
        let dir =
            tempfile::Builder::new().prefix("lapstrake-user-").tempdir().expect("a temporary directory");
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).expect("it is ours");
        for part in ["etc", "bin", "home", "run"] {
            fs::create_dir(dir.path().join(part)).expect("a directory");
        }
        let home = dir.path().join("home");
        let passwd = fs::read_to_string("/etc/passwd").expect("a file that everybody reads");
        let line = format!("{NAME}:x:{ID}:{ID}::{}:/bin/sh\n", home.display());
        fs::write(dir.path().join("etc/passwd"), passwd + &line).expect("a file");
        let ids = if count == 0 { String::new() } else { format!("{NAME}:{FIRST}:{count}\n") };
        for file in ["subuid", "subgid"] {
            // A bind mount needs something to be mounted on.
            let machine = Path::new("/etc").join(file);
            assert!(machine.exists(), "{} is not there; apt-get install uidmap", machine.display());
            fs::write(dir.path().join("etc").join(file), &ids).expect("a file");
        }
        File::create(dir.path().join("bin/lapstrake")).expect("a file");
        for part in ["home", "run"] {
            chown(dir.path().join(part), Some(ID), Some(ID)).expect("root may");
        }
        Self { dir }
    }

    /// A directory of the user's.
    pub fn home(&self) -> PathBuf {
        self.dir.path().join("home")
    }

    /// Where the daemon's socket and the like are: `XDG_RUNTIME_DIR`.
    pub fn runtime_dir(&self) -> PathBuf {
        self.dir.path().join("run")
    }

    /// Where the store is.
    pub fn root(&self) -> PathBuf {
        self.home().join("data/lapstrake")
    }

    /// The user's id.
    pub fn id(&self) -> u32 {
        ID
    }

    /// The machine's id of a user within the user's namespace.
    pub fn id_within(&self, id: u32) -> u32 {
        if id == 0 { ID } else { FIRST + id - 1 }
    }

    /// A directory of the user's, with these files.
    ///
    /// # Panics
    /// When they cannot be written.
    pub fn context(&self, name: &str, files: &[(&str, &[u8])]) -> PathBuf {
        let dir = self.home().join(name);
        fs::create_dir_all(&dir).expect("a directory");
        chown(&dir, Some(ID), Some(ID)).expect("root may");
        for (path, data) in files {
            let path = dir.join(path);
            fs::write(&path, data).expect("a file");
            chown(&path, Some(ID), Some(ID)).expect("root may");
        }
        dir
    }

    /// A command that the user runs, in their home.
    pub fn command<A: AsRef<OsStr>>(&self, run: &str, arguments: impl IntoIterator<Item = A>) -> Command {
        let mut command = Command::new("unshare");
        command.args(["--mount", "--propagation", "slave", "sh", "-c", ENTER, "sh"]);
        command.arg(self.dir.path()).arg(program()).arg(ID.to_string());
        command.arg(run).args(arguments);
        command
            .env_clear()
            .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
            .env("HOME", self.home())
            .env("XDG_DATA_HOME", self.home().join("data"))
            .env("XDG_RUNTIME_DIR", self.runtime_dir());
        command
    }

    /// The program under test, run by the user.
    pub fn lapstrake<A: AsRef<OsStr>>(&self, arguments: impl IntoIterator<Item = A>) -> Command {
        let program = self.dir.path().join("bin/lapstrake");
        self.command(&program.display().to_string(), arguments)
    }

    /// A daemon of the user's, where it is when nothing is said.
    ///
    /// # Panics
    /// When it does not start.
    pub fn daemon(&self, arguments: &[&str]) -> RootlessDaemon<'_> {
        let log = File::options().create(true).append(true).open(self.dir.path().join("log")).expect("a log");
        let mut command = self.lapstrake(["daemon"].iter().chain(arguments));
        command.stdin(Stdio::null()).stdout(log.try_clone().expect("a file can be shared")).stderr(log);
        let mut daemon = RootlessDaemon { process: Process::start(&mut command), user: self };
        let socket = daemon.socket();
        wait_for_socket(&mut daemon.process, &socket);
        daemon
    }

    /// What daemons of the user's logged.
    pub fn log(&self) -> String {
        fs::read_to_string(self.dir.path().join("log")).unwrap_or_default()
    }

    /// Processes of the user's, or of their subordinate ids.
    pub fn processes(&self) -> Vec<String> {
        let mut found = Vec::new();
        for entry in fs::read_dir("/proc").expect("it is there").flatten() {
            let status = fs::read_to_string(entry.path().join("status")).unwrap_or_default();
            let uid = status
                .lines()
                .find_map(|line| line.strip_prefix("Uid:")?.split_whitespace().next()?.parse().ok());
            let is_of = |uid: u32| uid == ID || (FIRST..FIRST + 65_536).contains(&uid);
            // Tests that run at the same time have the same user; the mounts, also a container's, are of this one's directory.
            let mounts = fs::read_to_string(entry.path().join("mountinfo")).unwrap_or_default();
            if uid.is_some_and(is_of) && mounts.contains(&*self.dir.path().to_string_lossy()) {
                found.push(fs::read_to_string(entry.path().join("cmdline")).unwrap_or_default());
            }
        }
        found
    }
}

impl Default for OrdinaryUser {
    fn default() -> Self {
        Self::new()
    }
}

impl Drop for OrdinaryUser {
    /// A test that fails shows what the daemon had to say.
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("the log of the user's daemons:\n{}", self.log());
        }
    }
}

/// A daemon that an ordinary user runs.
#[derive(Debug)]
pub struct RootlessDaemon<'a> {
    process: Process,
    user: &'a OrdinaryUser,
}

impl RootlessDaemon<'_> {
    /// The socket's path.
    pub fn socket(&self) -> PathBuf {
        self.user.runtime_dir().join("lapstrake/lapstrake.sock")
    }

    /// The docker CLI, talking to this daemon.
    pub fn docker(&self) -> Docker {
        Docker::new(format!("unix://{}", self.socket().display()), self.user.dir.path().join("docker-config"))
    }

    /// Its process.
    pub fn process(&mut self) -> &mut Process {
        &mut self.process
    }
}
