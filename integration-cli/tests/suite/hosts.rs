//! `--add-host`: what RUN finds in /etc/hosts.

use lapstrake_integration_cli::{Daemon, saved_image};

/// What RUN sees with these arguments of the daemon, by both protocols.
fn hosts(arguments: &[&str]) -> Vec<String> {
    let daemon = Daemon::start_with(arguments);
    let docker = daemon.docker();
    docker.run_with(["import", "-", "busybox"], &lapstrake_integration_cli::busybox_rootfs()).success();
    let dockerfile = b"FROM busybox\nRUN cp /etc/hosts /seen\n";
    let seen = |docker: lapstrake_integration_cli::Docker| {
        let hosts = ["--add-host", "gate:host-gateway", "--add-host", "db:10.1.2.3"];
        docker
            .run_with(["build", "--no-cache", "-t", "seen"].iter().chain(&hosts).chain(&["-"]), dockerfile)
            .success();
        let image = saved_image(&docker.run(["save", "seen"]).success().bytes);
        String::from_utf8(image.tree["seen"].content.clone()).unwrap()
    };
    vec![seen(docker.buildkit()), seen(docker.classic())]
}

fn addresses<'a>(hosts: &'a str, name: &str) -> Vec<&'a str> {
    let lines = hosts.lines().map(|line| line.split_whitespace().collect::<Vec<_>>());
    lines.filter(|words| words[1..].contains(&name)).map(|words| words[0]).collect()
}

#[test]
fn the_gateway_is_the_machine_itself_unless_told_otherwise() {
    // Where steps have the machine's network, that is loopback; otherwise suite/networks.rs shows it.
    let dir = tempfile::tempdir().unwrap();
    let config = dir.path().join("buildkitd.toml");
    std::fs::write(&config, "[worker.oci]\nnetworkMode = \"host\"\n").unwrap();
    for seen in hosts(&["--config", config.to_str().unwrap()]) {
        assert_eq!(
            (addresses(&seen, "gate"), addresses(&seen, "db")),
            (vec!["127.0.0.1"], vec!["10.1.2.3"]),
            "{seen}"
        );
    }
    for seen in hosts(&["--host-gateway-ip", "192.0.2.7", "--host-gateway-ip", "2001:db8::7"]) {
        assert_eq!(addresses(&seen, "gate"), ["192.0.2.7", "2001:db8::7"], "{seen}");
    }
}
