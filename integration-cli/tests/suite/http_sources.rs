//! Files and archives from web servers, as contexts, named contexts and sources of `ADD`.

#[allow(unreachable_pub)]
use std::{
    fs,
    os::unix::fs::MetadataExt,
    path::Path,
    process::{Command, Stdio},
};

use http::StatusCode;
use lapstrake_integration_cli::{
    Certificate, Daemon, Process, Repositories, free_address, git, lapstrake_command, require, saved_image,
};

use crate::common::{
    archive, build, escape,
    needles::Needles,
    web::{Answer, Web},
};

const TOKEN: &str = "t0ken-of-the-client-QxW7";

fn pack(program: &str, data: &[u8]) -> Vec<u8> {
    use std::io::Write as _;
    require(program, "gzip bzip2 xz-utils zstd");
    let mut child =
        Command::new(program).arg("-c").stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(data).unwrap();
    child.wait_with_output().unwrap().stdout
}

#[tokio::test]
async fn contexts_may_be_packed_in_every_way() {
    let daemon = Daemon::with_base();
    let plain = archive(&[
        ("Dockerfile", "FROM busybox\nCOPY a /a\n"),
        ("a", "from the web\n"),
        ("sub/Other", "FROM busybox\nCOPY sub /sub\n"),
    ]);
    let programs = ["gzip", "bzip2", "xz", "zstd"];
    let packed: Vec<Vec<u8>> = programs.iter().map(|program| pack(program, &plain)).collect();
    let web = Web::serve(move |seen| {
        let at: usize = seen.path.trim_start_matches('/').parse().unwrap();
        Answer::ok(&packed[at])
    });
    for (at, program) in programs.iter().enumerate() {
        let url = escape(&web.url(&format!("/{at}")));
        // The classic builder had no zstd in a context; here both are one.
        for version in [1, 2] {
            let query = format!("version={version}&t=packed&remote={url}");
            let answer = build(&daemon, &query, Vec::new()).await;
            assert_eq!(answer.status, StatusCode::OK, "{program} {}", answer.body);
            let image = saved_image(&daemon.docker().run(["save", "packed"]).success().bytes);
            assert_eq!(image.tree["a"].content, b"from the web\n", "{program} {version}");
        }
        let query = format!("version=2&t=other&dockerfile=sub/Other&remote={url}");
        let answer = build(&daemon, &query, Vec::new()).await;
        assert_eq!(answer.status, StatusCode::OK, "{program} {}", answer.body);
    }
}

#[test]
fn the_docker_cli_builds_what_is_behind_a_url_both_ways() {
    let daemon = Daemon::with_base();
    let context = archive(&[("Dockerfile", "FROM busybox\nCOPY a /a\n"), ("a", "from the web\n")]);
    let web = Web::serve(move |seen| match seen.path.as_str() {
        "/context.tar" => Answer::ok(&context).header("Content-Type", "application/x-tar"),
        "/Dockerfile" => {
            Answer::ok(b"FROM busybox\nRUN echo bare > /a\n").header("Content-Type", "text/plain")
        }
        _ => Answer::status(404),
    });
    for docker in [daemon.docker().buildkit(), daemon.docker().classic()] {
        for (path, content) in [("/context.tar", &b"from the web\n"[..]), ("/Dockerfile", b"bare\n")] {
            docker.run(["build", "-t", "web", &web.url(path)]).success();
            let image = saved_image(&daemon.docker().run(["save", "web"]).success().bytes);
            assert_eq!(image.tree["a"].content, content);
        }
        let failed = docker.run(["build", &web.url("/absent")]).failure();
        assert!(failed.all().contains("404"), "{}", failed.all());
    }
}

#[test]
fn added_files_have_the_servers_time_and_are_asked_for_by_tag() {
    let daemon = Daemon::with_base();
    let web = Web::serve(|seen| {
        if seen.header("authorization") != Some(&format!("Bearer {TOKEN}")) {
            return Answer::status(401);
        }
        match seen.path.as_str() {
            "/dir/file" if seen.header("if-none-match") == Some("\"tag\"") => Answer::status(304),
            "/dir/file" => Answer::ok(b"content")
                .header("ETag", "\"tag\"")
                .header("Last-Modified", "Sun, 06 Nov 1994 08:49:37 GMT"),
            "/moved" => Answer::status(302).header("Location", "/dir/file"),
            _ => Answer::status(404),
        }
    });
    let context = daemon.scratch().join("context");
    fs::create_dir_all(&context).unwrap();
    let sum = {
        require("sha256sum", "coreutils");
        fs::write(context.join("content"), "content").unwrap();
        let output = Command::new("sha256sum").arg(context.join("content")).output().unwrap();
        String::from_utf8(output.stdout).unwrap().split(' ').next().unwrap().to_owned()
    };
    let url = web.url("/dir/file");
    fs::write(
        context.join("Dockerfile"),
        format!(
            "FROM busybox\nADD {url} /plain\nADD --chown=12:34 --chmod=640 {} /dir/\nADD --checksum=sha256:{sum} {url} /checked\n",
            web.url("/moved")
        ),
    )
    .unwrap();
    fs::write(
        context.join("Dockerfile.wrong"),
        format!("FROM busybox\nADD --checksum=sha256:{} {url}?other /f\n", "0".repeat(64)),
    )
    .unwrap();
    fs::write(context.join("token"), TOKEN).unwrap();
    let secret = format!("id=HTTP_AUTH_TOKEN_127.0.0.1,src={}", context.join("token").display());
    let wrong = context.join("Dockerfile.wrong").display().to_string();
    let context = context.to_str().unwrap();
    let docker = daemon.docker().buildkit();
    docker.run(["build", "--secret", &secret, "-t", "added", context]).success();
    let image = saved_image(&docker.run(["save", "added"]).success().bytes);
    let plain = &image.tree["plain"];
    assert_eq!((plain.mode, plain.mtime, &plain.content[..]), (0o600, 784_111_777, &b"content"[..]));
    let moved = &image.tree["dir/moved"];
    assert_eq!((moved.mode, moved.uid, moved.gid), (0o640, 12, 34));
    assert_eq!(image.tree["checked"].content, b"content");
    // Again: asked for, and not sent. What has a checksum is not even asked for.
    let sent = web.log().iter().filter(|seen| seen.method == "GET").count();
    let again = docker.run(["build", "--secret", &secret, "-t", "added", context]).success();
    assert!(again.all().contains("CACHED"), "{}", again.all());
    let heads = web.log().iter().filter(|seen| seen.method == "HEAD").count();
    assert_eq!(web.log().iter().filter(|seen| seen.method == "GET").count(), sent);
    assert!(heads >= 2, "{:?}", web.log());
    let failed = docker.run(["build", "--secret", &secret, "-f", &wrong, context]).failure().all();
    assert!(failed.contains(&format!("digest mismatch for {url}?other: sha256:{sum}")), "{failed}");
    let refused = docker.run(["build", "--no-cache", context]).failure().all();
    assert!(refused.contains("401"), "{refused}");
    let needles = Needles::new(&[TOKEN]);
    for (place, told) in [("the display", &again.all()), ("the error", &failed), ("the log", &daemon.log())] {
        needles.assert_not_in(place, told.as_bytes());
    }
    assert!(needles.assert_not_below(&daemon.root()) > 100_000);
}

/// `openssl s_server` with a certificate for `localhost` of an authority of its own; it serves the files of its directory.
fn tls_server(dir: &Path) -> (Process, String) {
    let authority = Certificate::authority(dir, "ca");
    let Certificate { certificate, key } = authority.vouch(dir, "server", "DNS:localhost");
    for _ in 0..20 {
        let address = free_address();
        let mut command = Command::new("openssl");
        command
            .args(["s_server", "-quiet", "-WWW", "-accept", &address.to_string(), "-key"])
            .arg(&key)
            .arg("-cert")
            .arg(&certificate)
            .current_dir(dir)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        let mut process = Process::start(&mut command);
        while process.ended().is_none() {
            if std::net::TcpStream::connect(address).is_ok() {
                return (process, format!("https://localhost:{}", address.port()));
            }
            std::thread::sleep(std::time::Duration::from_millis(5));
        }
    }
    panic!("openssl s_server does not start");
}

#[test]
fn servers_must_be_who_they_say_they_are() {
    let dir = tempfile::tempdir().unwrap();
    let repositories = Repositories::new(dir.path());
    repositories.commit("r.git", &[("a", "of git\n")]);
    // For servers that know nothing of git.
    let bare = repositories.directory().join("r.git");
    git(&bare, &["update-server-info"]);
    // To this one, a query is a part of the name.
    fs::copy(bare.join("info/refs"), bare.join("info/refs?service=git-upload-pack")).unwrap();
    let (_server, url) = tls_server(dir.path());
    fs::write(dir.path().join("file"), "of http\n").unwrap();
    let context = dir.path().join("context");
    fs::create_dir_all(&context).unwrap();
    let (root, out) = (dir.path().join("own"), dir.path().join("out"));
    let run = |source: &str, url: &str, trusted: bool| {
        fs::write(context.join("Dockerfile"), format!("FROM scratch\nADD {source} /\n").replace("URL", url))
            .unwrap();
        let mut command = lapstrake_command(["build", "--no-cache", "--root", root.to_str().unwrap(), "-o"]);
        command.arg(format!("type=local,dest={}", out.display())).arg(&context);
        if trusted {
            command.env("SSL_CERT_FILE", dir.path().join("ca.pem"));
        }
        let output = command.output().unwrap();
        (output.status.success(), String::from_utf8(output.stderr).unwrap())
    };
    for (source, file) in [("URL/file", "file"), ("URL/r.git#main", "a")] {
        let (done, told) = run(source, &url, false);
        assert!(!done && told.to_lowercase().contains("certificate"), "{source}: {told}");
        let (done, told) = run(source, &url, true);
        assert!(done, "{source}: {told}");
        assert!(fs::metadata(out.join(file)).unwrap().size() > 0, "{source}");
        // Another name than the certificate's.
        let (done, told) = run(source, &url.replace("localhost", "127.0.0.1"), true);
        assert!(!done && told.to_lowercase().contains("certificate"), "{source}: {told}");
    }
}
