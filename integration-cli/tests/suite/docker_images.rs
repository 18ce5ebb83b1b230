//! Image and system commands of docker 20.10.

use std::fs;

use lapstrake_integration_cli::{BASE_IMAGE, Daemon};

#[test]
fn version_info_and_images() {
    let daemon = Daemon::with_base();
    let docker = daemon.docker();
    let version = docker.run(["version", "--format", "{{.Server.Os}}/{{.Server.APIVersion}}"]).success();
    assert!(version.line().starts_with("linux/1."), "{}", version.stdout);
    docker.run(["info"]).success();
    let images = docker.run(["images", "--format", "{{.Repository}}:{{.Tag}}"]).success();
    assert_eq!(images.line(), BASE_IMAGE);
}

#[test]
fn tags_come_and_go() {
    let daemon = Daemon::with_base();
    let docker = daemon.docker();
    docker.run(["tag", "busybox", "example.test/copy:1"]).success();
    let conflict = docker.run(["rmi", docker.run(["images", "-q", "busybox"]).success().line()]).failure();
    assert!(conflict.stderr.contains("image is referenced in multiple repositories"), "{}", conflict.stderr);
    let untagged = docker.run(["rmi", "busybox"]).success();
    assert_eq!(untagged.line(), "Untagged: busybox:latest");
    let deleted = docker.run(["rmi", "example.test/copy:1"]).success();
    assert!(deleted.stdout.contains("Untagged: example.test/copy:1"), "{}", deleted.stdout);
    assert!(deleted.stdout.contains("Deleted: sha256:"), "{}", deleted.stdout);
    let gone = docker.run(["rmi", "busybox"]).failure();
    assert!(gone.stderr.contains("No such image: busybox"), "{}", gone.stderr);
}

#[test]
fn a_saved_image_loads_into_another_store_with_the_same_id() {
    let (one, two) = (Daemon::with_base(), Daemon::start());
    let built = one
        .docker()
        .buildkit()
        .run_with(
            ["build", "-q", "-t", "app:1", "-t", "app:2", "-"],
            b"FROM busybox\nRUN mkdir /d && ln -s x /d/l && rm /bin/vi\n",
        )
        .success();
    let archive = one.docker().run(["save", "app:1", "app:2", "busybox"]).success().bytes;
    let loaded = two.docker().run_with(["load"], &archive).success();
    for name in ["app:1", "app:2", BASE_IMAGE] {
        assert!(loaded.stdout.contains(&format!("Loaded image: {name}")), "{}", loaded.stdout);
    }
    let id = two.docker().run(["image", "inspect", "--format", "{{.Id}}", "app:1"]).success();
    assert_eq!(id.line(), built.line());
    let again = two.docker().run(["save", "app:1", "app:2", "busybox"]).success().bytes;
    assert!(again == archive, "what was loaded is saved with the same bytes");
}

#[test]
fn disk_usage_and_pruning_agree() {
    let daemon = Daemon::with_base();
    let docker = daemon.docker().buildkit();
    docker
        .run_with(["build", "-t", "app", "-"], b"FROM busybox\nRUN head -c 3000000 /dev/urandom > /big\n")
        .success();
    let usage = docker.run(["system", "df", "-v"]).success();
    assert!(usage.stdout.contains("app"), "{}", usage.stdout);
    docker.run(["rmi", "app"]).success();
    let pruned = docker.run(["builder", "prune", "-af"]).success();
    assert!(pruned.stdout.contains("Total reclaimed space: 3."), "{}", pruned.stdout);
    docker.run(["system", "prune", "-af"]).success();
    assert_eq!(docker.run(["images", "-q"]).success().line(), "");
    let left = fs::read_dir(daemon.root().join("overlay2"))
        .unwrap()
        .filter(|entry| entry.as_ref().unwrap().file_name() != "l")
        .count();
    assert_eq!(left, 0, "nothing is left on disk");
}

#[test]
fn what_is_not_here_says_so() {
    let daemon = Daemon::with_base();
    let docker = daemon.docker();
    let run = docker.run(["run", "busybox"]).failure();
    assert!(run.stderr.contains("Error response from daemon"), "{}", run.stderr);
    let logs = docker.run(["logs", "nothing"]).failure();
    assert!(logs.stderr.contains("No such container: nothing"), "{}", logs.stderr);
    for list in [["ps", "-a"], ["network", "ls"], ["volume", "ls"]] {
        docker.run(list).success();
    }
}
