//! Repositories behind ssh: which servers are believed.

use std::{
    net::{SocketAddr, TcpListener, TcpStream},
    os::unix::fs::DirBuilderExt,
    path::Path,
    process::{Child, Command, Stdio},
};

use lapstrake_builder_source::ErrorKind;

use crate::common::{Bench, git::Upstream};

/// A server of OpenSSH that lets nobody in. Ends when dropped.
struct Sshd {
    child: Child,
    address: SocketAddr,
    /// Its key, as `known_hosts` has it.
    known: String,
}

impl Drop for Sshd {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn host_key(path: &Path) -> String {
    let made = Command::new("ssh-keygen").args(["-q", "-t", "ed25519", "-N", "", "-f"]).arg(path).status();
    assert!(made.unwrap().success());
    let key = std::fs::read_to_string(path.with_extension("pub")).unwrap();
    key.split_whitespace().take(2).collect::<Vec<_>>().join(" ")
}

impl Sshd {
    fn start(dir: &Path) -> Sshd {
        const PROGRAM: &str = "/usr/sbin/sshd";
        assert!(Path::new(PROGRAM).exists(), "apt-get install openssh-server");
        let confined = Path::new("/run/sshd");
        if !confined.exists() {
            // Another test may make it at the same time.
            let _ = std::fs::DirBuilder::new().mode(0o755).create(confined);
        }
        let path = dir.join("host");
        let key = host_key(&path);
        loop {
            let address = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
            let options = [
                format!("ListenAddress={address}"),
                format!("HostKey={}", path.display()),
                "AuthorizedKeysFile=none".to_owned(),
                "PasswordAuthentication=no".to_owned(),
                "KbdInteractiveAuthentication=no".to_owned(),
                "PidFile=none".to_owned(),
            ];
            let mut command = Command::new(PROGRAM);
            command.args(["-D", "-e", "-f", "/dev/null"]);
            command.args(options.iter().flat_map(|option| ["-o", option]));
            let mut child = command.stdin(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
            while child.try_wait().unwrap().is_none() {
                if TcpStream::connect(address).is_ok() {
                    let known = format!("[{}]:{} {key}\n", address.ip(), address.port());
                    return Sshd { child, address, known };
                }
                std::thread::sleep(std::time::Duration::from_millis(5));
            }
            // Somebody else has the port now.
        }
    }
}

#[tokio::test]
async fn a_server_must_have_the_key_that_the_client_knows() {
    let (upstream, bench) = (Upstream::new(), Bench::new());
    let sshd = Sshd::start(upstream.dir.path());
    let url = format!("ssh://root@{}{}", sshd.address, upstream.path("repo").display());
    let other = host_key(&upstream.dir.path().join("other"));
    let wrong = sshd.known.rsplitn(3, ' ').last().unwrap().to_owned() + " " + &other + "\n";
    let ask = async |known: &str| {
        let attrs = [("git.fullurl", url.as_str()), ("git.knownsshhosts", known)];
        bench.get(&bench.context(), "git://h/r#main", &attrs).await.unwrap_err()
    };
    for known in [&wrong, "elsewhere ssh-ed25519 AAAA\n"] {
        let error = ask(known).await;
        assert!(error.to_string().contains("Host key verification failed"), "{error}");
    }
    // Nobody is let in: so far it came, and no key of this machine was shown.
    let error = ask(&sshd.known).await;
    assert!(error.to_string().contains("Permission denied"), "{error}");
    assert_eq!(error.kind(), ErrorKind::Unauthorized);
    // Whoever knows none believes every server, and has to bring a key.
    let attrs = [("git.fullurl", url.as_str())];
    let error = bench.get(&bench.context(), "git://h/r#main", &attrs).await.unwrap_err();
    assert!(error.to_string().contains("Permission denied"), "{error}");
    let attrs = [("git.fullurl", url.as_str()), ("git.mountsshsock", "default")];
    let error = bench.get(&bench.context(), "git://h/r#main", &attrs).await.unwrap_err();
    assert!(error.to_string().contains("no SSH key \"default\" forwarded from the client"), "{error}");
}
