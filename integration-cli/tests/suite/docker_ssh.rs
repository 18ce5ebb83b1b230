//! `docker build --ssh`: RUN speaks with the client's agent.

use std::{fs, path::Path, process::Command};

use lapstrake_integration_cli::{Daemon, SshAgent};

fn output(command: &mut Command) -> String {
    let output = command.output().unwrap();
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// Copies a program and the libraries that it is linked with to the same paths in a directory.
fn copy_with_libraries(program: &str, to: &Path) {
    let libraries = output(Command::new("ldd").arg(program));
    let paths = libraries.split_whitespace().filter(|word| word.starts_with('/')).chain([program]);
    for path in paths {
        let target = to.join(path.trim_start_matches('/'));
        fs::create_dir_all(target.parent().unwrap()).unwrap();
        fs::copy(path, target).unwrap();
    }
}

#[test]
fn run_lists_the_keys_of_the_clients_agent() {
    let daemon = Daemon::with_base();
    let scratch = daemon.scratch();
    let agent = SshAgent::start(&scratch);
    let fingerprint = output(Command::new("ssh-keygen").arg("-lf").arg(&agent.key));
    let fingerprint = fingerprint.split(' ').nth(1).unwrap();

    let context = scratch.join("context");
    copy_with_libraries("/usr/bin/ssh-add", &context.join("root"));
    let dockerfile = "# syntax=docker/dockerfile:1\nFROM busybox\nCOPY root /\n\
                      RUN --mount=type=ssh,required=true /usr/bin/ssh-add -l > /keys\nRUN test -z \"$SSH_AUTH_SOCK\" && cat /keys\n";
    fs::write(context.join("Dockerfile"), dockerfile).unwrap();
    let docker = daemon.docker().buildkit();
    let ssh = format!("default={}", agent.socket.display());
    let built = docker.run(["build", "--ssh", &ssh, "-t", "keys", context.to_str().unwrap()]).success();
    assert!(built.all().contains(fingerprint), "{}", built.all());
    let refused = docker.run(["build", "--no-cache", context.to_str().unwrap()]).failure();
    assert!(refused.all().contains("ssh"), "{}", refused.all());
}
