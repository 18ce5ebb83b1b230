//! Clients from PyPI, each in an environment of its own under the target directory.

use std::{fs::File, path::PathBuf, process::Command};

use rustix::fs::{FlockOperation, flock};

use crate::require;

/// The environment that has this version of a package; made once, by whoever comes first.
///
/// # Panics
/// When it cannot be made: that needs Python's `venv`, and PyPI.
pub fn python_environment(package: &str, version: &str) -> PathBuf {
    require("python3", "python3");
    // target/<profile>/deps/<test> → target
    let test = std::env::current_exe().expect("a test has a path");
    let target = test.ancestors().nth(3).expect("a test is in target/<profile>/deps");
    let environment = target.join(format!("{package}-{version}"));
    let lock = File::create(target.join(format!("{package}.lock"))).expect("the target directory is ours");
    flock(&lock, FlockOperation::LockExclusive).expect("a lock");
    let done = environment.join("complete");
    if !done.exists() {
        check(
            Command::new("python3").args(["-m", "venv", "--clear"]).arg(&environment),
            "apt-get install python3-venv",
        );
        let package = format!("{package}=={version}");
        let install = ["-m", "pip", "install", "--quiet", "--disable-pip-version-check", &package];
        check(Command::new(environment.join("bin/python")).args(install), "PyPI has to be reachable once");
        File::create(done).expect("the environment is ours");
    }
    environment
}

fn check(command: &mut Command, hint: &str) {
    let output = command.output().unwrap_or_else(|error| panic!("{command:?}: {error}; {hint}"));
    assert!(
        output.status.success(),
        "{command:?}: {}{}; {hint}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
}
