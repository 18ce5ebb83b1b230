//! Caches that travel, with the real program: left by one store, used by another.

use std::path::Path;

use lapstrake_integration_cli::{Daemon, Registry, busybox_rootfs, lapstrake};
use tempfile::TempDir;

/// A context whose base is an archive, so that every store can have it.
fn context() -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("base.tar"), busybox_rootfs()).unwrap();
    std::fs::write(dir.path().join("src"), "source").unwrap();
    let dockerfile = "FROM scratch AS base\nADD base.tar /\n\
        FROM base AS make\nCOPY src /src\nRUN cat /src /proc/sys/kernel/random/uuid > /out\n\
        FROM base\nCOPY --from=make /out /out\nRUN cat /out /proc/sys/kernel/random/uuid > /both\n";
    std::fs::write(dir.path().join("Dockerfile"), dockerfile).unwrap();
    dir
}

/// Builds in an empty store, and says how it went and what `/both` is.
fn build(context: &Path, arguments: &[&str]) -> (String, String) {
    let (root, out) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (root, dest) = (root.path().display().to_string(), out.path().display().to_string());
    let mut all = vec!["build", "--progress", "plain", "--root", &root, "-o", &dest];
    all.extend(arguments);
    all.push(context.to_str().unwrap());
    let said = lapstrake(all).success().all();
    (said, std::fs::read_to_string(out.path().join("both")).unwrap())
}

#[test]
fn a_cache_of_one_store_has_every_step_for_another() {
    let registry = Registry::start();
    let (context, dir) = (context(), tempfile::tempdir().unwrap());
    let reference = registry.image("cache:1");
    for (to, from) in [
        (format!("type=registry,ref={reference},mode=max"), reference.clone()),
        (
            format!("type=local,dest={},mode=max,compression=zstd", dir.path().display()),
            format!("type=local,src={}", dir.path().display()),
        ),
    ] {
        let (said, first) = build(context.path(), &["--cache-to", &to]);
        assert!(said.contains("exporting cache to"), "{said}");
        let (said, second) = build(context.path(), &["--cache-from", &from]);
        assert_eq!(first, second, "{to}: {said}");
        assert!(said.matches("CACHED").count() >= 2, "{said}");
    }
    // And for docker's CLI, which names registries only.
    let daemon = Daemon::start();
    let docker = daemon.docker().buildkit();
    let at = context.path().to_str().unwrap();
    let (_, first) = build(context.path(), &["--cache-from", &reference]);
    let out = tempfile::tempdir().unwrap();
    let dest = format!("type=local,dest={}", out.path().display());
    docker.run(["build", "--cache-from", &reference, "-o", &dest, at]).success();
    assert_eq!(std::fs::read_to_string(out.path().join("both")).unwrap(), first);
    let refused = docker.run(["build", "--cache-from", "type=local,src=/etc", at]).failure();
    assert!(refused.all().contains("type=local"), "{}", refused.all());
}

#[test]
fn options_that_nobody_knows_are_named() {
    let (context, root) = (context(), tempfile::tempdir().unwrap());
    let (context, root) = (context.path().to_str().unwrap(), root.path().to_str().unwrap());
    let said =
        lapstrake(["build", "--root", root, "--cache-to", "type=gha,mode=max", context]).failure().all();
    assert!(said.contains("--cache-to") && said.contains("type gha"), "{said}");
}
