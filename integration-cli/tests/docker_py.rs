//! docker-py, from PyPI, in an environment of its own under the target directory.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking, and its helpers do too")]

use std::{
    fs::File,
    path::{Path, PathBuf},
    process::Command,
};

use lapstrake_integration_cli::{Daemon, require};
use rustix::fs::{FlockOperation, flock};

const VERSION: &str = "7.1.0";

/// The interpreter that has docker-py; made once, by whoever comes first.
fn python() -> PathBuf {
    require("python3", "python3");
    // target/<profile>/deps/<test> → target
    let test = std::env::current_exe().unwrap();
    let target = test.ancestors().nth(3).unwrap();
    let environment = target.join(format!("docker-py-{VERSION}"));
    let lock = File::create(target.join("docker-py.lock")).unwrap();
    flock(&lock, FlockOperation::LockExclusive).unwrap();
    let python = environment.join("bin/python");
    let done = environment.join("complete");
    if !done.exists() {
        check(
            Command::new("python3").args(["-m", "venv", "--clear"]).arg(&environment),
            "apt-get install python3-venv",
        );
        let package = format!("docker=={VERSION}");
        let install = ["-m", "pip", "install", "--quiet", "--disable-pip-version-check", &package];
        check(Command::new(&python).args(install), "PyPI has to be reachable once");
        File::create(done).unwrap();
    }
    python
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

/// Runs one function of the script against a daemon of its own.
fn run(function: &str) {
    let python = python();
    let daemon = Daemon::with_base();
    let config = daemon.scratch().join("python-config");
    std::fs::create_dir_all(&config).unwrap();
    let output = Command::new(python)
        .arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("python/docker_py.py"))
        .arg(function)
        .env_clear()
        .env("PATH", "/usr/bin:/bin")
        .env("HOME", &config)
        .env("DOCKER_CONFIG", &config)
        .env("DOCKER_HOST", daemon.host())
        .env("SCRATCH", daemon.scratch())
        .output()
        .unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{stderr}\ndaemon: {}", daemon.log());
}

#[test]
fn builds_a_directory_with_its_ignored_files_and_dockerfiles_elsewhere() {
    run("path_and_dockerfile");
}

#[test]
fn builds_dockerfiles_and_archives_from_file_objects() {
    run("file_objects");
}

#[test]
fn takes_every_argument_of_build() {
    run("arguments");
}

#[test]
fn refuses_what_it_does_not_do() {
    run("refusals");
}

#[test]
fn gives_proxies_of_the_clients_configuration_to_run() {
    run("config_proxy");
}

#[test]
fn failures_are_build_errors_with_their_log() {
    run("failures");
}

#[test]
fn lists_tags_saves_loads_and_removes_images() {
    run("images");
}

#[test]
fn tells_version_disk_usage_and_prunes() {
    run("system");
}

#[test]
fn streams_events() {
    run("events");
}
