//! Input that nobody means well with: an error that says what is wrong, a daemon that goes on, and nothing left behind.

#[allow(unreachable_pub)]
use std::{
    io::{Read, Write},
    os::unix::net::UnixStream,
    process::Stdio,
};

use http::StatusCode;
use lapstrake_integration_cli::{Daemon, Process};

use crate::common::{archive, build, eventually, leftovers, send};

/// What has to be so after anything.
async fn check_alive(daemon: &Daemon) {
    let ping = send(daemon, "GET", "/_ping", &[], Vec::new()).await;
    assert_eq!((ping.status, &ping.body[..]), (StatusCode::OK, "OK"));
    // What a request has brought goes with its last holder, which may be a little after the answer.
    eventually("nothing is left", || leftovers(daemon).is_empty()).await;
    assert!(!daemon.log().contains("panicked"), "{}", daemon.log());
}

/// Builds what should not build, by each protocol, and gives the errors.
async fn refused(daemon: &Daemon, context: &[u8]) -> [String; 2] {
    let classic = build(daemon, "version=1", context.to_vec()).await;
    let buildkit = build(daemon, "version=2", context.to_vec()).await;
    [classic.error(), buildkit.error()]
}

/// An archive with a good Dockerfile, and one more entry made by hand.
fn with_entry(name: &[u8], kind: tar::EntryType, link: Option<&str>, data: &[u8]) -> Vec<u8> {
    let mut archive = tar::Builder::new(Vec::new());
    let dockerfile = b"FROM busybox\nCOPY . /all\n";
    let mut header = tar::Header::new_gnu();
    header.set_size(dockerfile.len() as u64);
    header.set_mode(0o644);
    archive.append_data(&mut header, "Dockerfile", &dockerfile[..]).unwrap();
    let mut header = tar::Header::new_gnu();
    header.as_old_mut().name[..name.len()].copy_from_slice(name);
    header.set_entry_type(kind);
    header.set_mode(0o644);
    header.set_size(data.len() as u64);
    if kind == tar::EntryType::Char || kind == tar::EntryType::Block {
        header.set_device_major(8).unwrap();
        header.set_device_minor(0).unwrap();
    }
    if let Some(link) = link {
        header.as_old_mut().linkname[..link.len()].copy_from_slice(link.as_bytes());
    }
    header.set_cksum();
    archive.append(&header, data).unwrap();
    archive.into_inner().unwrap()
}

#[tokio::test]
async fn broken_archives() {
    let daemon = Daemon::with_base();
    let whole = archive(&[("Dockerfile", "FROM busybox\nCOPY . /all\n"), ("data", &"x".repeat(100_000))]);
    for error in refused(&daemon, &whole[..50_000]).await {
        assert!(error.contains("cut short") && error.contains("data"), "{error}");
    }
    let mut corrupt = whole.clone();
    corrupt[1024 + 10] ^= 0x55;
    for error in refused(&daemon, &corrupt).await {
        assert!(error.contains("archive") || error.contains("tar") || error.contains("header"), "{error}");
    }
    let mut packed = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    packed.write_all(&whole).unwrap();
    let packed = packed.finish().unwrap();
    for error in refused(&daemon, &packed[..packed.len() / 2]).await {
        assert!(!error.is_empty(), "{error}");
    }
    let noise = build(&daemon, "version=1", b"this is not an archive at all".repeat(100)).await.error();
    assert!(noise.contains("archive") || noise.contains("tar"), "{noise}");
    check_alive(&daemon).await;
}

#[tokio::test]
async fn paths_that_leave_the_context() {
    let daemon = Daemon::with_base();
    let outside = daemon.scratch().join("outside");
    std::fs::write(&outside, "untouched").unwrap();
    let up = format!("{}{}", "../".repeat(12), outside.strip_prefix("/").unwrap().display());
    // Names: refused, or taken as if the context were the root; never followed.
    for name in [up.as_str(), outside.to_str().unwrap()] {
        let archive = with_entry(name.as_bytes(), tar::EntryType::Regular, None, b"overwritten");
        for version in [1, 2] {
            let answer = build(&daemon, &format!("version={version}"), archive.clone()).await;
            if name.starts_with("..") {
                assert!(answer.error().contains("outside of the root"), "{}", answer.body);
            }
        }
        assert_eq!(std::fs::read_to_string(&outside).unwrap(), "untouched");
    }
    // A link out of the context, and an entry through it.
    let dir = outside.parent().unwrap().to_str().unwrap();
    let mut archive = tar::Builder::new(Vec::new());
    let dockerfile = b"FROM busybox\nCOPY link/outside /got\n";
    let mut header = tar::Header::new_gnu();
    header.set_size(dockerfile.len() as u64);
    header.set_mode(0o644);
    archive.append_data(&mut header, "Dockerfile", &dockerfile[..]).unwrap();
    let mut link = tar::Header::new_gnu();
    link.set_entry_type(tar::EntryType::Symlink);
    link.set_size(0);
    link.set_mode(0o777);
    archive.append_link(&mut link, "link", dir).unwrap();
    let reading = {
        let mut copy = archive.get_ref().clone();
        copy.extend([0; 1024]);
        copy
    };
    for error in refused(&daemon, &reading).await {
        assert!(error.contains("outside"), "the file of this machine is not found: {error}");
    }
    let mut header = tar::Header::new_gnu();
    header.set_size(11);
    header.set_mode(0o644);
    archive.append_data(&mut header, "link/outside", &b"overwritten"[..]).unwrap();
    let writing = archive.into_inner().unwrap();
    for version in [1, 2] {
        // Either an error, or the file inside of the context.
        build(&daemon, &format!("version={version}"), writing.clone()).await;
        assert_eq!(std::fs::read_to_string(&outside).unwrap(), "untouched");
    }
    // A hard link to a file of this machine, and a Dockerfile that is a link to one.
    for error in refused(&daemon, &with_entry(b"hard", tar::EntryType::Link, Some("/etc/shadow"), b"")).await
    {
        assert!(error.contains("\"hard\": a hard link to a file that is not there"), "{error}");
    }
    let mut archive = tar::Builder::new(Vec::new());
    let mut link = tar::Header::new_gnu();
    link.set_entry_type(tar::EntryType::Symlink);
    link.set_size(0);
    archive.append_link(&mut link, "Dockerfile", "/etc/passwd").unwrap();
    for error in refused(&daemon, &archive.into_inner().unwrap()).await {
        assert!(error.contains("Dockerfile") && !error.contains("root:x"), "{error}");
    }
    check_alive(&daemon).await;
}

#[tokio::test]
async fn devices_in_a_context() {
    let daemon = Daemon::with_base();
    for kind in [tar::EntryType::Char, tar::EntryType::Block] {
        let archive = with_entry(b"device", kind, None, b"");
        for error in refused(&daemon, &archive).await {
            assert!(error.contains("device"), "{error}");
        }
    }
    check_alive(&daemon).await;
}

#[tokio::test]
async fn dockerfiles_that_cannot_be() {
    let daemon = Daemon::with_base();
    for error in refused(&daemon, &archive(&[("a", "b")])).await {
        assert!(error.contains("Dockerfile"), "{error}");
    }
    for error in refused(&daemon, &[]).await {
        assert!(error.contains("Dockerfile") || error.contains("archive"), "{error}");
    }
    for (dockerfile, words) in [
        ("FROM busybox\nWHAT is this\n", "unknown instruction: WHAT"),
        ("", "empty"),
        ("RUN true\n", "no build stage in current context"),
        ("FROM busybox\nCOPY --from=nowhere /a /b\n", "nowhere"),
        ("FROM busybox\nCOPY nothing /\n", "nothing"),
        ("FROM busybox\nCOPY ../up /\n", "up"),
        ("FROM busybox\nRUN --mount=type=nonsense true\n", "nonsense"),
        ("FROM busybox\nENV\n", "ENV"),
        ("FROM Busybox:UPPER:x\n", "invalid reference format"),
        ("FROM busybox\nRUN exit 11\n", "11"),
        ("FROM busybox\nUSER nobodyofthatname\nRUN true\n", "nobodyofthatname"),
    ] {
        for error in refused(&daemon, &archive(&[("Dockerfile", dockerfile)])).await {
            assert!(error.contains(words), "{dockerfile:?}: {error}");
        }
    }
    check_alive(&daemon).await;
}

/// A `POST /build` whose body is sent bit by bit.
struct Upload(UnixStream);

impl Upload {
    fn begin(daemon: &Daemon, query: &str) -> Self {
        let mut stream = UnixStream::connect(daemon.socket()).unwrap();
        write!(stream, "POST /build?{query} HTTP/1.1\r\nHost: x\r\nContent-Type: application/x-tar\r\nConnection: close\r\nTransfer-Encoding: chunked\r\n\r\n")
            .unwrap();
        Self(stream)
    }

    /// Whether the daemon still takes it.
    fn chunk(&mut self, data: &[u8]) -> bool {
        write!(self.0, "{:x}\r\n", data.len())
            .and_then(|()| self.0.write_all(data))
            .and_then(|()| self.0.write_all(b"\r\n"))
            .is_ok()
    }

    fn end(mut self) -> String {
        // The daemon may have answered, and closed, before the end.
        let _ = self.0.write_all(b"0\r\n\r\n");
        let mut answer = Vec::new();
        let _ = self.0.read_to_end(&mut answer);
        String::from_utf8_lossy(&answer).into_owned()
    }
}

/// The header of a file named `Dockerfile`.
fn dockerfile_header(size: u64) -> Vec<u8> {
    let mut header = tar::Header::new_gnu();
    header.set_path("Dockerfile").unwrap();
    header.set_size(size);
    header.set_mode(0o644);
    header.set_cksum();
    header.as_bytes().to_vec()
}

/// More than the daemon ever has in memory, and little for a disk that other tests use too.
const MEBIBYTES: u64 = 192;

#[tokio::test]
async fn a_dockerfile_larger_than_the_daemon() {
    let daemon = Daemon::with_base();
    for version in [1, 2] {
        let mut upload = Upload::begin(&daemon, &format!("version={version}"));
        let mebibyte = b"# a comment of 32 bytes, for it\n".repeat(1 << 15);
        let mut taken = upload.chunk(&dockerfile_header(MEBIBYTES << 20));
        for _ in 0..MEBIBYTES {
            taken = taken && upload.chunk(&mebibyte);
        }
        taken = taken && upload.chunk(&[0; 1024]);
        let answer = upload.end();
        assert!(
            answer.contains("Dockerfile")
                && (answer.contains("large") || answer.contains("limit") || answer.contains("more than")),
            "{taken} {answer}"
        );
        assert!(daemon.resident() < MEBIBYTES << 19, "{} bytes of memory", daemon.resident());
    }
    check_alive(&daemon).await;
}

#[tokio::test]
async fn a_dockerfile_without_end_as_a_body() {
    let daemon = Daemon::with_base();
    let mut upload = Upload::begin(&daemon, "version=2");
    let comment = b"# comment\n".repeat(100_000);
    // Until the daemon has had enough.
    let mut sent = 0;
    while upload.chunk(&comment) && sent < 256 {
        sent += 1;
    }
    let answer = upload.end();
    assert!(sent < 256 || answer.contains("413"), "{sent} MB: {answer}");
    check_alive(&daemon).await;
}

#[tokio::test]
async fn clients_that_leave_in_the_middle_of_their_context() {
    let daemon = Daemon::with_base();
    for version in [1, 2] {
        let mut upload = Upload::begin(&daemon, &format!("version={version}"));
        assert!(upload.chunk(&dockerfile_header(1 << 40)));
        for _ in 0..8 {
            assert!(upload.chunk(&vec![b'#'; 1 << 20]));
        }
        drop(upload);
    }
    // What was received goes when the connection's end is seen.
    eventually("nothing is left", || leftovers(&daemon).is_empty()).await;
    check_alive(&daemon).await;
}

#[tokio::test]
async fn a_client_that_never_reads() {
    let daemon = Daemon::with_base();
    for version in [1, 2] {
        let mark = format!("/done-{version}");
        let dockerfile =
            format!("FROM busybox\nRUN yes 'a line that nobody reads' | head -c 20000000 && touch {mark}\n");
        let mut upload = Upload::begin(&daemon, &format!("version={version}&t=unread:{version}"));
        assert!(upload.chunk(&archive(&[("Dockerfile", &dockerfile)])));
        assert!(upload.0.write_all(b"0\r\n\r\n").is_ok());
        // The build does not wait for its client.
        let docker = daemon.docker();
        eventually("the image is there", || {
            docker.run(["image", "inspect", &format!("unread:{version}")]).code == 0
        })
        .await;
        assert!(daemon.resident() < 150 << 20, "{} bytes of memory", daemon.resident());
        drop(upload);
    }
    check_alive(&daemon).await;
}

#[tokio::test]
async fn a_session_that_vanishes_in_the_middle_of_a_transfer() {
    let daemon = Daemon::with_base();
    let dir = daemon.scratch().join("context");
    std::fs::create_dir_all(&dir).unwrap();
    std::fs::write(dir.join("Dockerfile"), "FROM busybox\nCOPY . /all\n").unwrap();
    // So large that it is not over before it is looked at; made of nothing on this side.
    std::fs::File::create(dir.join("big")).unwrap().set_len(1 << 36).unwrap();
    let mut client = Process::start(
        daemon
            .docker()
            .buildkit()
            .command(["build", dir.to_str().unwrap()])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null()),
    );
    let root = daemon.root();
    eventually("the transfer runs", || holds_file_larger_than(&root, 1 << 20, "big")).await;
    client.signal(rustix::process::Signal::KILL);
    client.wait();
    eventually("nothing is left", || {
        leftovers(&daemon).is_empty() && !holds_file_larger_than(&root, 0, "big")
    })
    .await;
    check_alive(&daemon).await;
}

/// Whether somewhere beneath there is a file of this name with more bytes.
fn holds_file_larger_than(dir: &std::path::Path, bytes: u64, name: &str) -> bool {
    // Directories come and go while it looks.
    let entries = std::fs::read_dir(dir).into_iter().flatten().filter_map(Result::ok);
    entries.into_iter().any(|entry| {
        let path = entry.path();
        entry.metadata().is_ok_and(|metadata| {
            if metadata.is_dir() {
                holds_file_larger_than(&path, bytes, name)
            } else {
                path.ends_with(name) && metadata.len() > bytes
            }
        })
    })
}
