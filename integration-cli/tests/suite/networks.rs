//! What network RUN has: by both protocols of the docker CLI, and without a daemon. Each test is a machine of its own.

use std::{net::Ipv4Addr, path::Path, time::Duration};

use lapstrake_integration_cli::{Daemon, Docker, Machine, busybox_rootfs, lapstrake, saved_image};

/// A RUN whose last line of output is what a web server answers.
fn ask(address: &str, port: u16) -> String {
    format!("printf 'GET / HTTP/1.0\\r\\n\\r\\n' | nc -w5 {address} {port} | tail -n1")
}

/// Builds a RUN of `script` that writes its output to a file, and gives that.
fn built(docker: &Docker, script: &str, options: &[&str]) -> String {
    let dockerfile = format!("FROM busybox\nRUN ({script}) > /seen 2>&1; true\n");
    let command = ["build", "--no-cache", "-t", "seen"];
    docker.run_with(command.iter().chain(options).chain(&["-"]), dockerfile.as_bytes()).success();
    let image = saved_image(&docker.run(["save", "seen"]).success().bytes);
    String::from_utf8(image.tree["seen"].content.clone()).unwrap()
}

fn both(daemon: &Daemon) -> [Docker; 2] {
    let docker = daemon.docker();
    [docker.buildkit(), docker.classic()]
}

/// A directory with a root file system and a Dockerfile, for builds without a daemon.
fn context(dir: &Path, script: &str) -> String {
    std::fs::create_dir_all(dir).unwrap();
    std::fs::write(dir.join("base.tar"), busybox_rootfs()).unwrap();
    let dockerfile = format!("FROM scratch\nADD base.tar /\nRUN ({script}) > /seen 2>&1; true\n");
    std::fs::write(dir.join("Dockerfile"), dockerfile).unwrap();
    dir.to_str().unwrap().to_owned()
}

/// The same by `lapstrake build`.
fn built_alone(scratch: &Path, script: &str, options: &[&str]) -> String {
    let (root, out) = (scratch.join("alone"), scratch.join("out"));
    let _ = std::fs::remove_dir_all(&out);
    let (root, out, context) =
        (root.to_str().unwrap(), out.to_str().unwrap(), context(&scratch.join("context"), script));
    let output = format!("type=local,dest={out}");
    let command = ["build", "--no-cache", "--root", root, "-o", &output];
    lapstrake(command.iter().chain(options).chain(&[context.as_str()])).success();
    std::fs::read_to_string(format!("{out}/seen")).unwrap()
}

#[test]
fn steps_have_a_network_of_their_own_behind_the_machines() {
    let machine = Machine::enter();
    let daemon = Daemon::with_base();
    assert_eq!(machine.of_lapstrake(), [] as [&str; 0], "nothing is made before it is needed");
    let script = format!("ls /sys/class/net; {}", ask(Machine::OUTSIDE, 80));
    let expected = format!("eth0\nlo\n{}", Machine::ADDRESS);
    for docker in both(&daemon) {
        assert_eq!(built(&docker, &script, &[]), expected);
        assert_eq!(built(&docker, &script, &["--network", "default"]), expected);
        assert_eq!(built(&docker, "ls /sys/class/net", &["--network", "none"]), "lo\n");
        assert_eq!(built(&docker, "ls /sys/class/net | grep out", &["--network", "host"]), "out\n");
        let refused = docker.run(["build", "--network", "container:x", "-"]).failure().all();
        assert!(refused.contains(r#"network mode "container:x" not supported"#), "{refused}");
    }
    // The classic builder's other name for it; BuildKit's dockerd does not know it.
    assert_eq!(built(&daemon.docker().classic(), &script, &["--network", "bridge"]), expected);
    assert_eq!(built_alone(&daemon.scratch(), &script, &[]), expected);
    assert_eq!(built_alone(&daemon.scratch(), "ls /sys/class/net", &["--network", "none"]), "lo\n");
}

#[test]
fn host_gateway_leads_to_the_machine() {
    let machine = Machine::enter();
    machine.serve(Ipv4Addr::UNSPECIFIED, 8080);
    let daemon = Daemon::with_base();
    let find = "$(awk '/gate/ {print $1}' /etc/hosts)";
    let script = format!("echo {find}; {}", ask(find, 8080));
    let options = ["--add-host", "gate:host-gateway"];
    for (docker, seen) in both(&daemon).iter().zip(["10.201.0.3", "10.201.0.4"]) {
        assert_eq!(built(docker, &script, &options), format!("10.201.0.1\n{seen}"));
    }
    let alone = built_alone(&daemon.scratch(), &script, &options);
    // The daemon has the first subnet.
    assert_eq!(alone, "10.201.4.1\n10.201.4.3");
    let told = built_alone(
        &daemon.scratch(),
        &format!("echo {find}"),
        &["--add-host", "gate:host-gateway", "--host-gateway-ip", "192.0.2.9"],
    );
    assert_eq!(told, "192.0.2.9\n");
}

#[test]
fn name_servers_are_those_of_the_command_line_and_the_file() {
    let _machine = Machine::enter();
    let dir = tempfile::tempdir().unwrap();
    let config = dir.path().join("buildkitd.toml");
    let text = "[dns]\nnameservers = [\"192.0.2.53\"]\noptions = [\"ndots:3\"]\nsearchDomains = [\"file.example\"]\n";
    std::fs::write(&config, text).unwrap();
    let config = config.to_str().unwrap();
    let daemon = Daemon::with_base_and(&["--config", config, "--dns-search", "line.example"]);
    for docker in both(&daemon) {
        assert_eq!(
            built(&docker, "cat /etc/resolv.conf", &[]),
            "nameserver 192.0.2.53\nsearch line.example\noptions ndots:3\n"
        );
    }
    let options = ["--config", config, "--dns", "127.0.0.1", "--dns-opt", "edns0"];
    assert_eq!(
        built_alone(&daemon.scratch(), "cat /etc/resolv.conf", &options),
        "nameserver 10.201.4.2\nsearch file.example\noptions edns0\n",
        "a server on loopback is asked by the program itself"
    );
}

#[test]
fn nothing_of_a_network_is_left_by_a_daemon_that_ends() {
    let machine = Machine::enter();
    let mut daemon = Daemon::with_base();
    let docker = daemon.docker();
    let expected = Machine::ADDRESS.to_string();
    assert_eq!(built(&docker, &ask(Machine::OUTSIDE, 80), &[]), expected);
    assert_eq!(machine.of_lapstrake().len(), 2, "one interface, one table");
    daemon.kill_and_restart();
    assert_eq!(built(&docker, &ask(Machine::OUTSIDE, 80), &[]), expected);
    assert_eq!(machine.of_lapstrake().len(), 2);
    daemon.process().stop();
    for _ in 0..1000 {
        if machine.of_lapstrake().is_empty() {
            return;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    panic!("still there: {:?}", machine.of_lapstrake());
}

#[test]
fn where_a_firewall_is_in_the_way_there_is_one_warning_and_the_machines_network() {
    let machine = Machine::enter();
    machine.forward_nothing();
    let daemon = Daemon::with_base();
    for docker in both(&daemon) {
        assert_eq!(built(&docker, "ls /sys/class/net | grep out", &[]), "out\n");
        assert_eq!(
            built(&docker, "awk '/gate/ {print $1}' /etc/hosts", &["--add-host", "gate:host-gateway"]),
            "127.0.0.1\n"
        );
    }
    let log = daemon.log();
    assert_eq!(log.matches("RUN steps have the machine's own network").count(), 1, "{log}");
    assert!(log.contains("does not forward packets") && log.contains("DOCKER-USER"), "{log}");
    assert_eq!(machine.of_lapstrake(), [] as [&str; 0]);
}

#[test]
fn the_configuration_says_what_steps_have() {
    let machine = Machine::enter();
    let dir = tempfile::tempdir().unwrap();
    let daemon = |name: &str, text: &str| {
        let config = dir.path().join(name);
        std::fs::write(&config, text).unwrap();
        Daemon::with_base_and(&["--config", config.to_str().unwrap()])
    };
    let host = daemon("host", "[worker.oci]\nnetworkMode = \"host\"\n");
    assert_eq!(built(&host.docker(), "ls /sys/class/net | grep out", &[]), "out\n");
    let none = daemon("none", "[worker.oci]\nnetworkMode = \"none\"\n");
    assert_eq!(built(&none.docker(), "ls /sys/class/net", &[]), "lo\n");
    assert_eq!(machine.of_lapstrake(), [] as [&str; 0]);
    let subnet = daemon(
        "subnet",
        "[worker.oci]\nnetworkMode = \"bridge\"\nbridgeSubnet = \"10.77.0.0/24\"\ncniPoolSize = 2\n",
    );
    let output = built(&subnet.docker(), "ip -4 -o addr show eth0", &[]);
    assert!(output.contains("inet 10.77.0.3/24"), "{output}");
    // Another one cannot have the same.
    let second =
        daemon("second", "[worker.oci]\nnetworkMode = \"bridge\"\nbridgeSubnet = \"10.77.0.0/16\"\n");
    let refused = second.docker().run_with(["build", "-"], b"FROM busybox\nRUN true\n").failure().all();
    assert!(refused.contains("the subnet 10.77.0.0/16 is in use"), "{refused}");
}
