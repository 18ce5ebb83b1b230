//! Files from a web server on loopback, and from a client's upload.

use std::{collections::HashMap, os::unix::fs::MetadataExt, sync::Arc, time::Duration};

use axum::{body::Body, response::Response};
use lapstrake_builder_source::{
    BuildMark, ErrorKind, SourceContext, SourceError, SourceFacts, SourceLimits, SuffixedDigest,
};
use lapstrake_layerstore_oci::Digest;
use lapstrake_layerstore_store::SnapshotRecords as _;
use parking_lot::Mutex;

use crate::common::{
    Bench,
    server::{Server, empty, status},
};
use crate::session::{self, Client};

fn body(text: &str) -> Response {
    status(200).body(Body::from(text.to_owned())).unwrap()
}

fn key(json: &str) -> Digest {
    Digest::sha256_of(format!("buildkit.source.v0:{}", Digest::sha256_of(json)))
}

#[tokio::test]
async fn a_file_has_the_servers_name_and_time_and_the_ops_owner_and_mode() {
    let server = Server::start(|_| {
        status(200)
            .header("content-disposition", "attachment; filename=\"../real.txt\"")
            .header("last-modified", "Sun, 06 Nov 1994 08:49:37 GMT")
            .body(Body::from("content"))
            .unwrap()
    })
    .await;
    let bench = Bench::new();
    let attrs = [("http.perm", "0755"), ("http.uid", "12"), ("http.gid", "0x22")];
    let (digest, tree) = bench.get(&bench.context(), &server.url("/dir/x?y"), &attrs).await.unwrap();
    assert_eq!(bench.list(&tree), [("real.txt".to_owned(), "f:content".to_owned())]);
    let file = bench.metadata(&tree, "real.txt");
    assert_eq!((file.mode() & 0o7777, file.uid(), file.gid(), file.mtime()), (0o755, 12, 34, 784_111_777));
    let json = format!(
        r#"{{"Filename":"real.txt","Perm":493,"UID":12,"GID":34,"Checksum":"{}","LastModTime":"Sun, 06 Nov 1994 08:49:37 GMT"}}"#,
        Digest::sha256_of("content")
    );
    assert_eq!(digest, key(&json));
    assert_eq!(server.count("GET"), 1);
}

#[tokio::test]
async fn plain_files_are_private_and_from_1970() {
    let server = Server::start(|_| body("x")).await;
    let bench = Bench::new();
    let (digest, tree) = bench.get(&bench.context(), &server.url("/a.txt"), &[]).await.unwrap();
    let file = bench.metadata(&tree, "a.txt");
    assert_eq!((file.mode() & 0o7777, file.mtime()), (0o600, 0));
    let json =
        format!(r#"{{"Filename":"a.txt","Perm":0,"UID":0,"GID":0,"Checksum":"{}"}}"#, Digest::sha256_of("x"));
    assert_eq!(digest, key(&json));
}

#[tokio::test]
async fn a_file_with_an_entity_tag_is_downloaded_again_only_when_it_changed() {
    let tag = Arc::new(Mutex::new("\"1\""));
    let current = Arc::clone(&tag);
    let server = Server::start(move |seen| {
        let tag = *current.lock();
        if seen.header("if-none-match") == Some(tag) && seen.method == "GET" {
            return empty(304);
        }
        status(200).header("etag", format!("W/{tag}")).body(Body::from(format!("content {tag}"))).unwrap()
    })
    .await;
    let bench = Bench::new();
    let url = server.url("/f");
    let (first, tree) = bench.get(&bench.context(), &url, &[]).await.unwrap();
    let (second, again) = bench.get(&bench.context(), &url, &[]).await.unwrap();
    assert_eq!((&first, &tree), (&second, &again));
    assert_eq!((server.count("GET"), server.count("HEAD")), (1, 1));
    // What is remembered is not collected.
    drop((tree, again));
    bench.collect();
    bench.get(&bench.context(), &url, &[]).await.unwrap();
    assert_eq!(server.count("GET"), 1);
    *tag.lock() = "\"2\"";
    let (third, tree) = bench.get(&bench.context(), &url, &[]).await.unwrap();
    assert_ne!(first, third);
    assert_eq!(bench.read(&tree, "f"), b"content \"2\"");
}

#[tokio::test]
async fn a_server_that_answers_no_head_is_asked_by_entity_tag() {
    let server = Server::start(|seen| match (seen.method.as_str(), seen.header("if-none-match")) {
        ("HEAD", _) => empty(405),
        (_, Some("\"t\"")) => empty(304),
        _ => status(200).header("etag", "\"t\"").body(Body::from("x")).unwrap(),
    })
    .await;
    let bench = Bench::new();
    let (_, tree) = bench.get(&bench.context(), &server.url("/f"), &[]).await.unwrap();
    let (_, again) = bench.get(&bench.context(), &server.url("/f"), &[]).await.unwrap();
    assert_eq!(tree, again);
}

#[tokio::test]
async fn with_a_checksum_nobody_is_asked_until_the_file_is_needed_and_it_must_be_the_files() {
    let server = Server::start(|_| body("right")).await;
    let bench = Bench::new();
    let right = Digest::sha256_of("right");
    let source = bench.open(&server.url("/f"), &[("http.checksum", right.as_str())]).unwrap();
    source.pin(&bench.context()).await.unwrap();
    let facts = SourceFacts::File { digest: right.clone(), filename: "f".to_owned(), modified: None };
    assert_eq!(source.facts(&bench.context()).await.unwrap(), facts);
    assert_eq!(server.count("GET"), 0);
    let tree = source.fetch(&bench.context()).await.unwrap();
    assert_eq!(bench.read(&tree, "f"), b"right");
    let suffixed =
        bench.sources.suffixed_digest(&tree, "f", SuffixedDigest::Sha256, b" or wrong").await.unwrap();
    assert_eq!(suffixed, Digest::sha256_of("right or wrong").to_string());
    let wrong = Digest::sha256_of("wrong");
    let error = bench
        .get(&bench.context(), &server.url("/g"), &[("http.checksum", wrong.as_str())])
        .await
        .unwrap_err();
    assert!(matches!(&error, SourceError::Checksum { expected, .. } if *expected == wrong), "{error}");
    let told = format!("digest mismatch for {}: {right} (expected: {wrong})", server.url("/g"));
    assert_eq!(error.to_string(), told);
}

#[tokio::test]
async fn a_file_that_is_packed_for_the_way_arrives_unpacked() {
    let packed = {
        let mut child = std::process::Command::new("gzip")
            .arg("-c")
            .stdin(std::process::Stdio::piped())
            .stdout(std::process::Stdio::piped())
            .spawn()
            .unwrap();
        std::io::Write::write_all(&mut child.stdin.take().unwrap(), b"content").unwrap();
        child.wait_with_output().unwrap().stdout
    };
    let archive = packed.clone();
    let server = Server::start(move |seen| {
        let answer = status(200).header("etag", "\"e\"");
        match (seen.path.as_str(), seen.header("accept-encoding")) {
            ("/file", Some(accepted)) if accepted.contains("gzip") => {
                answer.header("content-encoding", "gzip").body(Body::from(packed.clone())).unwrap()
            }
            // What is an archive by itself stays one.
            ("/file.gz", _) => answer.body(Body::from(archive.clone())).unwrap(),
            _ => empty(406),
        }
    })
    .await;
    let bench = Bench::new();
    let (digest, tree) = bench.get(&bench.context(), &server.url("/file"), &[]).await.unwrap();
    assert_eq!(bench.read(&tree, "file"), b"content");
    let json = format!(
        r#"{{"Filename":"file","Perm":0,"UID":0,"GID":0,"Checksum":"{}"}}"#,
        Digest::sha256_of("content")
    );
    assert_eq!(digest, key(&json));
    let (again, _) = bench.get(&bench.context(), &server.url("/file"), &[]).await.unwrap();
    assert_eq!((again, server.count("GET")), (digest, 1));
    let (_, tree) = bench.get(&bench.context(), &server.url("/file.gz"), &[]).await.unwrap();
    assert!(bench.read(&tree, "file.gz").starts_with(&[0x1f, 0x8b]));
}

#[tokio::test]
async fn a_file_that_is_cut_off_is_none() {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let host = listener.local_addr().unwrap().to_string();
    let server = tokio::spawn(async move {
        for answer in [
            "HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhalf",
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n64\r\nhalf",
        ] {
            let (mut connection, _) = listener.accept().await.unwrap();
            let _ = connection.read(&mut [0; 4096]).await.unwrap();
            connection.write_all(answer.as_bytes()).await.unwrap();
        }
    });
    let bench = Bench::new();
    for _ in 0..2 {
        let error = bench.get(&bench.context(), &format!("http://{host}/f"), &[]).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unavailable, "{error}");
        assert!(error.to_string().contains(&host), "{error}");
    }
    server.await.unwrap();
    bench.collect();
    assert!(bench.local.records.all().unwrap().is_empty());
}

#[tokio::test]
async fn a_time_alone_does_not_stand_for_a_file() {
    let count = std::sync::atomic::AtomicUsize::new(0);
    let server = Server::start(move |_| {
        let n = count.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
        let answer = status(200).header("last-modified", "Sun, 06 Nov 1994 08:49:37 GMT");
        answer.body(Body::from(n.to_string())).unwrap()
    })
    .await;
    let bench = Bench::new();
    for expected in ["0", "1"] {
        let (_, tree) = bench.get(&bench.context(), &server.url("/f"), &[]).await.unwrap();
        assert_eq!(bench.read(&tree, "f"), expected.as_bytes());
    }
    assert!(server.log.lock().iter().all(|seen| seen.header("if-modified-since").is_none()));
}

#[tokio::test]
async fn refusals_are_told_with_their_status_and_without_passwords() {
    let server = Server::start(|seen| empty(seen.path[1..].parse().unwrap())).await;
    let bench = Bench::new();
    for (code, kind) in [
        (404, ErrorKind::NotFound),
        (401, ErrorKind::Unauthorized),
        (403, ErrorKind::Denied),
        (500, ErrorKind::Unavailable),
    ] {
        let url = format!("http://alice:s3cret@{}/{code}", server.host);
        let error = bench.get(&bench.context(), &url, &[]).await.unwrap_err();
        assert_eq!(error.kind(), kind, "{error}");
        assert!(error.to_string().contains(&code.to_string()), "{error}");
        assert!(!error.to_string().contains("s3cret"), "{error}");
    }
    assert!(server.log.lock()[0].header("authorization").unwrap().starts_with("Basic "));
}

#[tokio::test]
async fn redirects_are_followed_a_few_times_and_take_no_credentials_to_another_host() {
    let other = Server::start(|_| body("there")).await;
    let target = other.url("/file");
    let server = Server::start(move |seen| match seen.path.as_str() {
        "/loop" => status(302).header("location", "/loop").body(Body::empty()).unwrap(),
        _ => status(302).header("location", &target).body(Body::empty()).unwrap(),
    })
    .await;
    let client = Client {
        secrets: HashMap::from([("HTTP_AUTH_TOKEN_127.0.0.1".to_owned(), b"t0ken\n".to_vec())]),
        ..Client::default()
    };
    let connected = client.connect_as(session::info("s1")).await;
    let bench = Bench::with(SourceLimits::default(), connected.sessions.clone());
    let cx = bench.context_of("s1");
    let (_, tree) = bench.get(&cx, &server.url("/start"), &[]).await.unwrap();
    assert_eq!(bench.names(&tree), ["start"]);
    assert_eq!(server.log.lock()[0].header("authorization"), Some("Bearer t0ken"));
    assert_eq!(other.log.lock()[0].header("authorization"), None);
    let error = bench.get(&bench.context(), &server.url("/loop"), &[]).await.unwrap_err();
    assert!(error.to_string().contains("redirect"), "{error}");
}

#[tokio::test]
async fn endless_and_stalling_answers_end() {
    let server = Server::start(|seen| {
        let chunk = bytes::Bytes::from(vec![b'x'; 1000]);
        match seen.path.as_str() {
            "/endless" => {
                let chunks = futures::stream::repeat_with(move || Ok::<_, std::io::Error>(chunk.clone()));
                status(200).body(Body::from_stream(chunks)).unwrap()
            }
            _ => status(200)
                .body(Body::from_stream(futures::stream::pending::<Result<bytes::Bytes, std::io::Error>>()))
                .unwrap(),
        }
    })
    .await;
    let limits = SourceLimits {
        http_bytes: 100_000,
        http_stall: Duration::from_millis(200),
        ..SourceLimits::default()
    };
    let bench = Bench::with(limits, lapstrake_session::Sessions::new());
    let error = bench.get(&bench.context(), &server.url("/endless"), &[]).await.unwrap_err();
    assert!(matches!(error, SourceError::TooLarge { limit: 100_000, .. }), "{error}");
    let error = bench.get(&bench.context(), &server.url("/stalls"), &[]).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unavailable, "{error}");
    bench.collect();
    assert!(bench.local.records.all().unwrap().is_empty());
}

#[tokio::test]
async fn an_upload_is_taken_once_and_serves_its_session_until_that_ends() {
    let client = Client {
        uploads: HashMap::from([("ctx1".to_owned(), b"FROM scratch\n".to_vec())]),
        ..Client::default()
    };
    let seen = Arc::clone(&client.seen);
    let connected = client.connect_as(session::info("s1")).await;
    let bench = Bench::with(SourceLimits::default(), connected.sessions.clone());
    let cx = bench.context_of("s1");
    let url = "http://buildkit-session/ctx1";
    assert!(!bench.sources.is_archive(&cx, url).await.unwrap());
    assert_eq!(seen.lock().upload_metadata.take().unwrap().get("urlpath").unwrap(), "/ctx1");
    for _ in 0..2 {
        let (_, tree) = bench.get(&cx, url, &[("http.filename", "context")]).await.unwrap();
        assert_eq!(bench.read(&tree, "context"), b"FROM scratch\n");
    }
    assert!(seen.lock().upload_metadata.is_none());
    let error = bench.get(&bench.context(), url, &[]).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unavailable, "{error}");
}

#[tokio::test]
async fn a_build_without_a_session_asks_once_even_where_a_server_has_no_entity_tags() {
    let server = Server::start(|_| body("FROM scratch\n")).await;
    let bench = Bench::new();
    let mark = BuildMark::default();
    let cx = || SourceContext { builds: vec![mark.clone()], ..bench.context() };
    let url = server.url("/Dockerfile");
    assert!(!bench.sources.is_archive(&cx(), &url).await.unwrap());
    for _ in 0..2 {
        let (_, tree) = bench.get(&cx(), &url, &[("http.filename", "context")]).await.unwrap();
        assert_eq!(bench.read(&tree, "context"), b"FROM scratch\n");
    }
    assert_eq!(server.log.lock().len(), 1);
    // Another build asks for itself.
    let other = SourceContext { builds: vec![BuildMark::default()], ..bench.context() };
    bench.get(&other, &url, &[("http.filename", "context")]).await.unwrap();
    assert_eq!(server.log.lock().len(), 2);
    // And nothing is remembered for one that has ended.
    drop(mark);
    bench.get(&bench.context(), &server.url("/other"), &[]).await.unwrap();
}

#[tokio::test]
async fn a_file_is_in_use_as_long_as_its_build_and_no_longer() {
    let server = Server::start(|_| body("x")).await;
    let bench = Bench::new();
    let build = BuildMark::default();
    let cx = SourceContext { builds: vec![build.clone()], ..bench.context() };
    let (_, tree) = bench.get(&cx, &server.url("/a.txt"), &[]).await.unwrap();
    drop(tree);
    // The build goes on: what it has seen stays, whatever is pruned.
    assert!(!bench.stores.leases.all_held().is_empty());
    bench.get(&cx, &server.url("/a.txt"), &[]).await.unwrap();
    assert_eq!(server.count("GET"), 1);
    drop((build, cx));
    while !bench.stores.leases.all_held().is_empty() {
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn a_url_that_is_a_context_may_be_an_archive_or_a_dockerfile() {
    let mut archive = tar::Builder::new(Vec::new());
    let mut header = tar::Header::new_gnu();
    header.set_size(12);
    archive.append_data(&mut header, "Dockerfile", &b"FROM scratch"[..]).unwrap();
    let archive = archive.into_inner().unwrap();
    let server = Server::start(move |seen| match seen.path.as_str() {
        "/Dockerfile" => body("FROM scratch\n"),
        _ => status(200).body(Body::from(archive.clone())).unwrap(),
    })
    .await;
    let bench = Bench::new();
    let cx = bench.context();
    assert!(bench.sources.is_archive(&cx, &server.url("/a.tar")).await.unwrap());
    assert!(!bench.sources.is_archive(&cx, &server.url("/Dockerfile")).await.unwrap());
}

#[tokio::test]
async fn user_headers_are_sent_if_they_are_harmless() {
    let server = Server::start(|_| body("x")).await;
    let bench = Bench::new();
    let attrs = [("http.header.accept", "text/plain"), ("http.header.cookie", "c=1")];
    bench.get(&bench.context(), &server.url("/f"), &attrs).await.unwrap();
    let log = server.log.lock();
    assert_eq!((log[0].header("accept"), log[0].header("cookie")), (Some("text/plain"), None));
}

#[test]
fn bad_attributes_are_refused_by_name() {
    let bench = Bench::new();
    for (key, value, kind) in [
        ("http.checksum", "nonsense", ErrorKind::Invalid),
        ("http.checksum", &format!("sha512:{}", "0".repeat(128)), ErrorKind::Invalid),
        ("http.uid", "-1", ErrorKind::Invalid),
        ("http.perm", "rwx", ErrorKind::Invalid),
        ("http.sig.pubkey", "key", ErrorKind::Invalid),
    ] {
        let error = bench.open("http://h/f", &[(key, value)]).err().unwrap();
        assert_eq!(error.kind(), kind, "{error}");
    }
    assert_eq!(bench.open("http://", &[]).err().unwrap().kind(), ErrorKind::Invalid);
}

#[tokio::test]
async fn a_file_must_be_signed_by_whom_the_op_believes() {
    let server = Server::start(|_| body("what was signed\n")).await;
    let other = Server::start(|_| body("something else\n")).await;
    let signature = include_str!("../fixtures/signatures/alice.asc");
    let (alice, bob) =
        (include_str!("../fixtures/signatures/alice.pub"), include_str!("../fixtures/signatures/bob.pub"));
    let bench = Bench::new();
    let url = server.url("/artifact");
    let signed = |keys| [("http.sig.signature", signature), ("http.sig.pubkey", keys)];
    let (plain, _) = bench.get(&bench.context(), &url, &[]).await.unwrap();
    let both = [bob, alice].concat();
    for keys in [alice, both.as_str()] {
        let (key, tree) = bench.get(&bench.context(), &url, &signed(keys)).await.unwrap();
        assert_eq!(bench.read(&tree, "artifact"), b"what was signed\n");
        assert_eq!(key, plain, "a signature changes nothing of the file");
    }
    let digest = Digest::sha256_of("what was signed\n").to_string();
    let mut pinned = signed(alice).to_vec();
    pinned.push(("http.checksum", &digest));
    bench.get(&bench.context(), &url, &pinned).await.unwrap();
    for (url, keys) in [(url.as_str(), bob), (other.url("/artifact").as_str(), alice)] {
        let source = bench.open(url, &signed(keys)).unwrap();
        let error = source.pin(&bench.context()).await.unwrap_err();
        assert!(error.to_string().contains("failed to verify pgp signature"), "{error}");
        assert_eq!(error.kind(), ErrorKind::Denied);
    }
    let error = bench.open(&url, &[("http.sig.signature", signature)]).err().unwrap();
    assert!(error.to_string().contains("requires both pubkey and signature"), "{error}");
}

#[tokio::test]
async fn an_attribute_that_nobody_knows_means_nothing() {
    let server = Server::start(|_| body("x")).await;
    let bench = Bench::new();
    let url = server.url("/a");
    let (plain, _) = bench.get(&bench.context(), &url, &[]).await.unwrap();
    let (key, _) = bench.get(&bench.context(), &url, &[("http.what", "1"), ("foo", "bar")]).await.unwrap();
    assert_eq!(key, plain);
}
