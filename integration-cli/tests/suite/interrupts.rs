//! ^C: the docker CLI ends at once, and so does what it had started.

#[allow(unreachable_pub)]
use std::{fs, process::Stdio};

use lapstrake_integration_cli::{Daemon, Process};
use rustix::process::Signal;

use crate::common::{eventually, is_running};

#[tokio::test]
async fn an_interrupt_ends_the_cli_and_the_build() {
    let daemon = Daemon::with_base();
    let context = daemon.scratch().join("context");
    fs::create_dir_all(&context).unwrap();
    let mut seconds = 86_000 + std::process::id();
    for (buildkit, quiet) in [(true, true), (true, false), (false, true), (false, false)] {
        // A word by which this very step's process is known.
        seconds += 1_000_000;
        let word = seconds.to_string();
        fs::write(context.join("Dockerfile"), format!("FROM busybox\nRUN [\"/bin/sleep\", \"{word}\"]\n"))
            .unwrap();
        let docker = if buildkit { daemon.docker().buildkit() } else { daemon.docker().classic() };
        let mut command = docker.command(["build"]);
        command.args(quiet.then_some("-q")).arg(&context).stdout(Stdio::null()).stderr(Stdio::null());
        let mut cli = Process::start(&mut command);
        eventually("the step runs", || is_running(&word)).await;
        cli.signal(Signal::INT);
        let what = format!("buildkit {buildkit}, quiet {quiet}");
        eventually(&format!("the CLI ends: {what}"), || cli.ended().is_some()).await;
        assert!(!cli.wait().success(), "{what}");
        eventually(&format!("the step ends: {what}"), || !is_running(&word)).await;
    }
    // And nothing is left of them.
    daemon.docker().run(["version"]).success();
}
