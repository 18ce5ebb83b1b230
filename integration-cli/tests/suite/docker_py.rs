//! docker-py, from PyPI, in an environment of its own under the target directory.

use std::{path::Path, process::Command};

use lapstrake_integration_cli::{Daemon, python_environment};

const VERSION: &str = "7.1.0";

/// Runs one function of the script against a daemon of its own.
fn run(function: &str) {
    let python = python_environment("docker", VERSION).join("bin/python");
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
