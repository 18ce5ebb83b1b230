//! The program under test.
#![allow(clippy::unwrap_used, reason = "only code in #[test] functions is known to be a test")]

use std::{
    path::Path,
    process::{Command, Output},
};

/// `lapstrake`, with an environment that holds nothing of the machine's.
pub(crate) fn lapstrake() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_lapstrake"));
    command.env_clear().env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin").env("HOME", "/nonexistent");
    command
}

/// What a command said: standard output, standard error.
pub(crate) fn said(output: &Output) -> (String, String) {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (text(&output.stdout), text(&output.stderr))
}

/// Standard output of a command that must succeed.
#[track_caller]
pub(crate) fn success(command: &mut Command) -> String {
    let output = command.output().unwrap();
    let (stdout, stderr) = said(&output);
    assert!(output.status.success(), "{command:?}: {}\n{stdout}\n{stderr}", output.status);
    stdout
}

/// Standard error of a command that must fail with exit code 1.
#[track_caller]
pub(crate) fn failure(command: &mut Command) -> String {
    let output = command.output().unwrap();
    let (stdout, stderr) = said(&output);
    assert_eq!(output.status.code(), Some(1), "{command:?}\n{stdout}\n{stderr}");
    stderr
}

/// A context with these files.
pub(crate) fn write(dir: &Path, files: &[(&str, &str)]) {
    for (name, text) in files {
        let path = dir.join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, text).unwrap();
    }
}
