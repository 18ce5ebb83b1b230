//! What steps may do beyond a sandbox: granted by the daemon's configuration and by the client, or refused.

use std::{fs, path::Path};

use lapstrake_integration_cli::{Daemon, Output, busybox_rootfs, lapstrake};

const HOST: &str = "FROM busybox\nRUN --network=host echo on the host: $(readlink /proc/self/ns/net)\n";
const INSECURE: &str = "FROM busybox\nRUN --security=insecure grep Seccomp: /proc/self/status\n";

fn context(dir: &Path, dockerfile: &str) -> String {
    fs::create_dir_all(dir).unwrap();
    fs::write(dir.join("Dockerfile"), dockerfile).unwrap();
    dir.to_str().unwrap().to_owned()
}

#[test]
fn docker_build_grants_the_network_alone_and_the_daemon_may_refuse_that() {
    let host = fs::read_link("/proc/self/ns/net").unwrap();
    let usual = Daemon::with_base();
    let without = Daemon::with_base_and(&["--allow-insecure-entitlement", "security.insecure"]);
    for (daemon, allows) in [(&usual, true), (&without, false)] {
        let network = context(&daemon.scratch().join("network"), HOST);
        let insecure = context(&daemon.scratch().join("insecure"), INSECURE);
        for docker in [daemon.docker().classic(), daemon.docker().buildkit()] {
            let said = docker.run(["build", "--no-cache", &network]).failure().all();
            assert!(said.contains("network.host is not allowed"), "{said}");
            let granted = docker.run(["build", "--no-cache", "--network=host", &network]);
            if allows {
                let said = granted.success().all();
                assert!(said.contains(&format!("on the host: {}", host.display())), "{said}");
            } else {
                let said = granted.failure().all();
                let why = "granting entitlement network.host is not allowed by build daemon configuration";
                assert!(said.contains(why), "{said}");
            }
            // Docker's CLI has no way to grant this, whatever the daemon allows.
            let said = docker.run(["build", "--no-cache", &insecure]).failure().all();
            assert!(said.contains("security.insecure is not allowed"), "{said}");
        }
    }
}

/// `lapstrake build` of a Dockerfile on a store of its own.
struct Alone {
    dir: tempfile::TempDir,
}

impl Alone {
    fn new() -> Self {
        Self { dir: tempfile::tempdir().unwrap() }
    }

    fn config(&self, text: &str) -> String {
        let path = self.dir.path().join("buildkitd.toml");
        fs::write(&path, text).unwrap();
        path.to_str().unwrap().to_owned()
    }

    fn build(&self, dockerfile: &str, flags: &[&str]) -> Output {
        let dockerfile = dockerfile.replace("FROM busybox", "FROM scratch\nADD base.tar /");
        let context = context(&self.dir.path().join("context"), &dockerfile);
        fs::write(Path::new(&context).join("base.tar"), busybox_rootfs()).unwrap();
        let root = self.dir.path().join("root");
        let fixed = ["build", "--progress", "plain", "--no-cache", "--root", root.to_str().unwrap()];
        lapstrake(fixed.iter().chain(flags).copied().chain([context.as_str()]))
    }
}

#[test]
fn a_build_without_a_daemon_is_granted_what_it_says_unless_the_configuration_does_not_allow_it() {
    let alone = Alone::new();
    for (dockerfile, entitlement, seen) in
        [(HOST, "network.host", "on the host: net:"), (INSECURE, "security.insecure", "Seccomp:\t0")]
    {
        let said = alone.build(dockerfile, &[]).failure().all();
        assert!(said.contains(&format!("{entitlement} is not allowed")), "{said}");
        assert!(said.contains(">>> RUN --"), "the line is shown: {said}");
        let said = alone.build(dockerfile, &["--allow", entitlement]).success().all();
        assert!(said.contains(seen), "{said}");
        let config = alone.config("insecure-entitlements = []");
        let said = alone.build(dockerfile, &["--allow", entitlement, "--config", &config]).failure().all();
        let why = format!("granting entitlement {entitlement} is not allowed by build daemon configuration");
        assert!(said.contains(&why), "{said}");
        let config = alone.config(&format!("insecure-entitlements = [\"{entitlement}\"]"));
        alone.build(dockerfile, &["--allow", entitlement, "--config", &config]).success();
    }
    let said = alone.build(HOST, &["--network", "host"]).success().all();
    assert!(said.contains("on the host: net:"), "{said}");
    let said = alone.build(HOST, &["--allow", "everything"]).failure().all();
    assert!(said.contains("--allow") && said.contains("unknown entitlement everything"), "{said}");
}

const DEVICE: &str = "# syntax=docker/dockerfile:1-labs\nFROM busybox\n\
    RUN --device=vendor.com/thing=null stat -c '%n is %t:%T' /dev/thing/null; (echo x > /dev/thing/null) && echo it is written to; \
        echo VENDOR=$VENDOR; cat /usr/share/vendor/driver\n";

/// A specification of a harmless device below `dir`; gives its directory.
fn describe_device(dir: &Path) -> String {
    fs::create_dir_all(dir).unwrap();
    fs::write(dir.join("driver"), "driver of the host\n").unwrap();
    let driver = dir.join("driver");
    let spec = format!(
        "cdiVersion: \"0.6.0\"\nkind: vendor.com/thing\ndevices:\n- name: \"null\"\n  containerEdits:\n    \
         env: [VENDOR=thing]\n    deviceNodes:\n    - {{path: /dev/thing/null, hostPath: /dev/null, permissions: rw}}\n    \
         mounts:\n    - {{hostPath: {}, containerPath: /usr/share/vendor/driver, options: [ro, nosuid, nodev, bind]}}\n",
        driver.display()
    );
    fs::write(dir.join("vendor.yaml"), spec).unwrap();
    dir.to_str().unwrap().to_owned()
}

fn has_device(output: Output) {
    let said = output.success().all();
    for part in ["/dev/thing/null is 1:3", "it is written to", "VENDOR=thing", "driver of the host"] {
        assert!(said.contains(part), "{part}: {said}");
    }
}

#[test]
fn a_step_has_the_device_that_it_asks_for_in_every_executor() {
    let alone = Alone::new();
    let specs = describe_device(&alone.dir.path().join("cdi"));
    let config = alone.config(&format!("[cdi]\nspecDirs = [\"{specs}\"]"));
    for executor in [&[][..], &["--oci-runtime", "runc"], &["--oci-runtime", "crun"]] {
        let build = |flags: &[&str]| {
            let flags: Vec<&str> =
                executor.iter().chain(flags).copied().chain(["--config", &config]).collect();
            alone.build(DEVICE, &flags)
        };
        has_device(build(&["--allow", "device"]));
        has_device(build(&["--allow", "device=vendor.com/thing"]));
        let said = build(&[]).failure().all();
        assert!(
            said.contains("device vendor.com/thing=null is requested by the build but not allowed"),
            "{said}"
        );
    }
    let disabled = alone.config("[cdi]\ndisabled = true");
    let said = alone.build(DEVICE, &["--allow", "device", "--config", &disabled]).failure().all();
    assert!(
        said.contains("granting entitlement device is not allowed by build daemon configuration"),
        "{said}"
    );
}

#[test]
fn a_daemon_offers_devices_that_need_no_grant() {
    let dir = tempfile::tempdir().unwrap();
    let specs = describe_device(&dir.path().join("cdi"));
    let daemon = Daemon::with_base_and(&["--cdi-spec-dir", &specs]);
    let context = context(&daemon.scratch().join("context"), DEVICE);
    let said = daemon.docker().buildkit().run(["build", &context]).failure().all();
    assert!(
        said.contains("device vendor.com/thing=null is requested by the build but not allowed"),
        "{said}"
    );
    // Registered anew while the daemon runs.
    let spec = fs::read_to_string(dir.path().join("cdi/vendor.yaml")).unwrap();
    let allowed = spec.replace(
        "devices:\n",
        "annotations: {org.mobyproject.buildkit.device.autoallow: \"true\"}\ndevices:\n",
    );
    fs::write(dir.path().join("cdi/vendor.yaml"), allowed).unwrap();
    has_device(daemon.docker().buildkit().run(["build", "--no-cache", &context]));
}
