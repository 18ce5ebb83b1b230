//! Other processors: Debian's busybox for them, and emulators of `qemu-user-static`.

use std::{
    ffi::CStr,
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};
use tempfile::TempDir;

/// The root file system of the base image for a Debian architecture (`arm64`, `armhf`, `i386`), with that busybox. It is fetched by apt, once.
pub fn foreign_busybox_rootfs(architecture: &str) -> Vec<u8> {
    crate::base::rootfs_of(&fs::read(busybox(architecture)).expect("busybox can be read"))
}

/// Where the program is, below `target`.
fn busybox(architecture: &str) -> PathBuf {
    let test = std::env::current_exe().expect("a test has a path");
    // target/<profile>/deps/<test>
    let target = test.ancestors().nth(3).expect("a test is in target/<profile>/deps");
    let dir = target.join("test-files");
    fs::create_dir_all(&dir).expect("a directory");
    let lock = fs::File::create(dir.join("lock")).expect("a file");
    // Other tests may want it at the same time.
    lock.lock().expect("a file can be locked");
    let program = dir.join(format!("busybox-{architecture}"));
    if !program.is_file() {
        let unpacked = fetch(&dir, architecture);
        fs::rename(unpacked.path().join("bin/busybox"), &program).expect("the package has it");
    }
    program
}

/// Has apt fetch the package into a directory of its own: the machine's lists of packages stay as they are.
fn fetch(dir: &Path, architecture: &str) -> TempDir {
    let work = tempfile::tempdir_in(dir).expect("a temporary directory");
    let path = |name: &str| work.path().join(name).display().to_string();
    for name in ["lists/partial", "cache/archives/partial"] {
        fs::create_dir_all(work.path().join(name)).expect("a directory");
    }
    let options = [
        "-q".to_owned(),
        format!("-oAPT::Architectures::={architecture}"),
        "-oAPT::Sandbox::User=root".to_owned(),
        format!("-oDir::State::lists={}", path("lists")),
        format!("-oDir::Cache={}", path("cache")),
    ];
    // A mirror that lacks a list of another component is no reason to fail: what counts is whether the package can be had.
    run(Command::new("apt-get").args(&options).arg("update"), false);
    let package = format!("busybox-static:{architecture}");
    run(Command::new("apt-get").args(&options).args(["download", &package]).current_dir(work.path()), true);
    let archive = fs::read_dir(work.path())
        .expect("it can be listed")
        .map(|entry| entry.expect("it can be listed").path())
        .find(|path| path.extension().is_some_and(|extension| extension == "deb"));
    let archive = archive.expect("apt-get download leaves a package");
    run(Command::new("dpkg-deb").arg("-x").args([&archive, work.path()]), true);
    work
}

fn run(command: &mut Command, must_succeed: bool) {
    let output = command.output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() || !must_succeed, "{command:?}: {text}");
}

/// An emulator that the kernel knows of, as Debian's package registers it, as long as this lives.
///
/// Several may know of the same one at the same time: each registers under a name of its own.
#[derive(Debug)]
pub struct Emulator {
    /// binfmt_misc, mounted for this alone.
    dir: TempDir,
    name: String,
}

impl Emulator {
    /// Registers one in QEMU's name for the processor (`aarch64`).
    pub fn register(processor: &str) -> Self {
        let file = format!("/usr/lib/binfmt.d/qemu-{processor}.conf");
        crate::require(&format!("/usr/bin/qemu-{processor}-static"), "qemu-user-static");
        let line = fs::read_to_string(&file).unwrap_or_else(|error| panic!("read {file}: {error}"));
        let own = format!("lapstrake-{}-{processor}", std::process::id());
        let line = line.trim().replacen(&format!(":qemu-{processor}:"), &format!(":{own}:"), 1);
        let dir = tempfile::tempdir().expect("a temporary directory");
        let none: Option<&CStr> = None;
        mount("none", dir.path(), "binfmt_misc", MountFlags::empty(), none)
            .expect("the kernel has binfmt_misc, and this is root");
        let emulator = Self { dir, name: own };
        fs::write(emulator.dir.path().join("register"), &line)
            .unwrap_or_else(|error| panic!("register {line}: {error}"));
        emulator
    }
}

impl Drop for Emulator {
    fn drop(&mut self) {
        // What cannot be taken back here goes with the machine; nothing of it is in the way of other tests.
        let _ = fs::write(self.dir.path().join(&self.name), "-1");
        let _ = unmount(self.dir.path(), UnmountFlags::DETACH);
    }
}
