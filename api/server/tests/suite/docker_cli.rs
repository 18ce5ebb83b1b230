//! Debian's docker CLI 20.10 against these doors.

use crate::common::{Daemon, record};

/// Runs the CLI. The test is of no use without it, and says so.
async fn docker(daemon: &Daemon, args: &[&str]) -> (bool, String) {
    let output = tokio::process::Command::new("/usr/bin/docker")
        .arg("-H")
        .arg(format!("unix://{}", daemon.socket().display()))
        .args(args)
        .env_clear()
        .env("HOME", daemon.dir.path())
        .kill_on_drop(true)
        .output()
        .await
        .expect("docker 20.10 of Debian's docker.io package is installed");
    let text =
        format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    (output.status.success(), text)
}

#[tokio::test]
async fn docker_20_10_reads_what_it_is_told() {
    let daemon = Daemon::start();
    let id = daemon.image(&["one", "two2"], &["app:1", "app:2"]);
    daemon.cache.records.lock().unwrap().push(record("r1", "regular", 7000));
    let run = async |args: &[&str]| {
        let (ok, text) = docker(&daemon, args).await;
        assert!(ok, "docker {args:?}: {text}");
        text
    };
    let format = "{{.Server.APIVersion}} {{.Server.MinAPIVersion}} {{.Server.Os}}";
    assert_eq!(run(&["version", "--format", format]).await, "1.54 1.24 linux\n");
    assert_eq!(
        run(&["info", "--format", "{{.Images}} {{.Driver}} {{.Swarm.LocalNodeState}}"]).await,
        "1 vfs inactive\n"
    );
    run(&["info"]).await;
    let images = run(&["images", "--format", "{{.Repository}}:{{.Tag}} {{.ID}} {{.Size}}"]).await;
    assert_eq!(images, format!("app:1 {0} 7B\napp:2 {0} 7B\n", id.short()));
    assert!(run(&["history", "app:1"]).await.contains("COPY two2"));
    assert!(run(&["inspect", "app:1"]).await.contains(id.as_str()));
    run(&["tag", "app:1", "other:3"]).await;
    let df = run(&["system", "df", "-v"]).await;
    assert!(df.contains("app ") && df.contains("7kB"), "{df}");
    assert!(run(&["system", "df"]).await.contains("Build Cache"));
    let now = lapstrake_api_types::Timestamp::now().rfc3339();
    let events = run(&[
        "events",
        "--since",
        "10m",
        "--until",
        &now,
        "--format",
        "{{.Action}} {{.Actor.Attributes.name}}",
    ])
    .await;
    assert_eq!(events, "tag other:3\n");
    assert_eq!(run(&["rmi", "other:3"]).await, "Untagged: other:3\n");
    assert_eq!(run(&["ps", "-aq"]).await, "");
    assert_eq!(run(&["volume", "ls", "-q"]).await, "");
    assert_eq!(run(&["network", "ls", "-q"]).await, "");
    let pruned = run(&["builder", "prune", "-f"]).await;
    assert!(pruned.contains("Total") && pruned.contains("7kB"), "{pruned}");
    let pruned = run(&["system", "prune", "-af"]).await;
    assert!(pruned.contains("untagged: app:1") && pruned.contains("Total reclaimed space"), "{pruned}");
    let (ok, text) = docker(&daemon, &["run", "app:1"]).await;
    assert!(!ok && text.contains("runs no containers"), "{text}");
    let (ok, text) = docker(&daemon, &["rm", "nope"]).await;
    assert!(!ok && text.contains("No such container: nope"), "{text}");
    let (ok, text) = docker(&daemon, &["search", "x"]).await;
    assert!(!ok && text.contains("searching Docker Hub: not supported"), "{text}");
}
