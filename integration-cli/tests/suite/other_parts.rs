//! The same builds with other parts behind the contracts: OCI runtimes in place of the built-in executor, vfs in place of overlay2.

use lapstrake_integration_cli::{BASE_IMAGE, Daemon, busybox_rootfs, require};

const DOCKERFILE: &[u8] = b"FROM busybox\n\
    RUN --mount=type=cache,target=/c echo \"$(id -u) $(hostname)\" > /c/said && cp /c/said /said\n\
    USER app\n\
    RUN id > /tmp/id\n\
    USER root\n\
    RUN grep -q uid=1000 /tmp/id && rm /bin/vi\n";

fn builds_with(arguments: &[&str]) {
    let daemon = Daemon::start_with(arguments);
    let docker = daemon.docker();
    docker.run_with(["import", "-", BASE_IMAGE], &busybox_rootfs()).success();
    for docker in [docker.buildkit(), docker.classic()] {
        docker.run_with(["build", "--no-cache", "-t", "app", "-"], DOCKERFILE).success();
        let layers = docker.run(["image", "inspect", "--format", "{{len .RootFS.Layers}}", "app"]).success();
        assert_eq!(layers.line(), "4");
        docker.run(["save", "app"]).success();
    }
    let failing = docker.buildkit().run_with(["build", "-"], b"FROM busybox\nRUN exit 7\n").failure();
    assert!(failing.all().contains("exit code: 7"), "{}", failing.all());
}

#[test]
fn runc() {
    require("runc", "runc");
    builds_with(&["--oci-runtime", "runc"]);
}

#[test]
fn crun() {
    require("crun", "crun");
    builds_with(&["--oci-runtime", "crun"]);
}

#[test]
fn vfs() {
    builds_with(&["--storage-driver", "vfs"]);
}
