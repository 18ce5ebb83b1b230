//! Pull, push, load, save and import: how what a transfer does is told.

use bytes::Bytes;
use futures::{FutureExt, StreamExt};
use http::Method;
use http_body_util::BodyExt;
use lapstrake_api_server::{ApiError, ApiErrorKind, Imported, Loaded, Pulled, Pushed, TransferNews};
use lapstrake_layerstore_oci::{Digest, Reference};
use tokio::sync::oneshot;

use crate::common::{self, Daemon};

fn news(id: &str, action: &str, current: u64, total: u64) -> TransferNews {
    TransferNews::Progress { id: id.to_owned(), action: action.to_owned(), current, total }
}

#[tokio::test]
async fn a_pull_is_told_as_moby_tells_it() {
    let daemon = Daemon::start();
    let id = daemon.image(&["one"], &["busybox:1.36"]);
    *daemon.transfer.pull.lock().unwrap() = Some(Box::new(move |order, sink| {
        let id = id.clone();
        async move {
            assert_eq!(order.reference.familiar(), "busybox:1.36");
            assert_eq!(order.platform.unwrap().architecture, "arm64");
            assert_eq!(order.auth.username, "me");
            let text = "Pulling from library/busybox".to_owned();
            sink.send(TransferNews::Status { id: Some("1.36".to_owned()), text }).await.unwrap();
            sink.send(news("0123456789ab", "Pulling fs layer", 0, 0)).await.unwrap();
            sink.send(news("0123456789ab", "Downloading", 50, 100)).await.unwrap();
            sink.send(news("0123456789ab", "Pull complete", 0, 0)).await.unwrap();
            let images = vec![(order.reference, id)];
            Ok(Pulled { images, digest: Some(Digest::sha256_of("m")), is_newer: true })
        }
        .boxed()
    }));
    let auth = base64url(r#"{"username":"me","password":"x"}"#);
    let reply = daemon
        .send(
            Method::POST,
            "/images/create?fromImage=busybox&tag=1.36&platform=linux/arm64",
            &[("x-registry-auth", &auth)],
            "",
        )
        .await;
    assert_eq!(reply.headers["content-type"], "application/json");
    insta::assert_snapshot!("pull", reply.golden());
}

#[tokio::test]
async fn errors_before_the_first_line_have_a_status_and_later_ones_are_the_last_line() {
    let daemon = Daemon::start();
    let denied = || {
        ApiError::not_found(
            "pull access denied for x, repository does not exist or may require 'docker login'",
        )
    };
    *daemon.transfer.pull.lock().unwrap() = Some(Box::new(move |order, sink| {
        async move {
            if order.reference.path() == "library/late" {
                sink.send(TransferNews::Text("so far so good\n".to_owned())).await.unwrap();
            }
            Err(denied())
        }
        .boxed()
    }));
    insta::assert_snapshot!(daemon.post("/images/create?fromImage=x").await.golden(), @r#"404 {"message":"pull access denied for x, repository does not exist or may require 'docker login'"}"#);
    insta::assert_snapshot!(daemon.post("/images/create?fromImage=late").await.golden(), @r#"
    200 {"stream":"so far so good\n"}⏎
    {"errorDetail":{"message":"pull access denied for x, repository does not exist or may require 'docker login'"},"error":"pull access denied for x, repository does not exist or may require 'docker login'"}⏎
    "#);
    insta::assert_snapshot!(daemon.post("/images/create?fromImage=scratch").await.golden(), @r#"403 {"message":"'scratch' is a reserved name"}"#);
    insta::assert_snapshot!(daemon.post("/images/create").await.golden(), @r#"400 {"message":"nothing to pull or import: parameters fromImage and fromSrc are empty"}"#);
    let reply = daemon.post("/images/create?fromImage=x&platform=/").await;
    assert_eq!(reply.status, 400);
    assert!(reply.text().contains("invalid platform"));
}

#[tokio::test]
async fn a_client_that_leaves_ends_its_pull() {
    let daemon = Daemon::start();
    let (ended, end) = oneshot::channel::<()>();
    let ended = std::sync::Mutex::new(Some(ended));
    *daemon.transfer.pull.lock().unwrap() = Some(Box::new(move |_, sink| {
        let held = ended.lock().unwrap().take().unwrap();
        async move {
            sink.send(TransferNews::Text("begun\n".to_owned())).await.unwrap();
            let _held = held;
            std::future::pending().await
        }
        .boxed()
    }));
    let answer = daemon.open(Method::POST, "/images/create?fromImage=x", &[], "").await;
    drop(answer);
    assert!(end.await.is_err());
}

#[tokio::test]
async fn a_push_names_each_tag_and_its_digest() {
    let daemon = Daemon::start();
    daemon.image(&["one"], &["r:5000/app:1"]);
    *daemon.transfer.push.lock().unwrap() = Some(Box::new(|order, sink| {
        async move {
            sink.send(news("0123456789ab", "Pushed", 0, 0)).await.unwrap();
            if order.reference.tag() == Some("2") {
                return Err(ApiError::not_found("An image does not exist locally with the tag: r:5000/app"));
            }
            Ok(Pushed { manifests: vec![(order.reference, Digest::sha256_of("m"), 528)] })
        }
        .boxed()
    }));
    insta::assert_snapshot!("push", daemon.post("/images/r:5000/app/push?tag=1").await.golden());
    insta::assert_snapshot!("push-failed", daemon.post("/images/r:5000/app/push?tag=2").await.golden());
}

#[tokio::test]
async fn a_load_names_what_was_in_the_archive() {
    let daemon = Daemon::start();
    let id = daemon.image(&["one"], &["a:1"]);
    let expected = id.clone();
    *daemon.transfer.load.lock().unwrap() = Some(Box::new(move |order, mut archive, _| {
        let id = id.clone();
        async move {
            assert!(!order.quiet);
            let mut bytes = Vec::new();
            while let Some(chunk) = archive.next().await {
                bytes.extend_from_slice(&chunk.unwrap());
            }
            if bytes != b"archive" {
                return Err(ApiError::invalid("unexpected EOF"));
            }
            let named = vec![Reference::parse("a:1").unwrap()];
            Ok(Loaded { images: vec![(id.clone(), named), (id, vec![])] })
        }
        .boxed()
    }));
    let reply = daemon.send(Method::POST, "/images/load?quiet=0", &[], "archive").await;
    insta::assert_snapshot!(reply.golden().replace(expected.as_str(), "<id>"), @r#"
    200 {"stream":"Loaded image: a:1\n"}⏎
    {"stream":"Loaded image ID: <id>\n"}⏎
    "#);
    let reply = daemon.send(Method::POST, "/images/load?quiet=0", &[], "arch").await;
    insta::assert_snapshot!(reply.golden(), @r#"400 {"message":"unexpected EOF"}"#);
}

#[tokio::test]
async fn a_save_that_fails_half_way_does_not_look_whole() {
    let daemon = Daemon::start();
    insta::assert_snapshot!(daemon.get("/images/nope/get").await.golden(), @r#"404 {"message":"No such image: nope"}"#);
    *daemon.transfer.save.lock().unwrap() =
        Some(vec![Ok(Bytes::from_static(b"ta")), Ok(Bytes::from_static(b"r"))]);
    let reply = daemon.get("/images/get?names=a&names=b").await;
    assert_eq!(
        (reply.text().as_str(), &reply.headers["content-type"]),
        ("tar", &"application/x-tar".parse().unwrap())
    );
    let failure = ApiError::new(ApiErrorKind::Internal, "disk");
    *daemon.transfer.save.lock().unwrap() = Some(vec![Ok(Bytes::from_static(b"ta")), Err(failure)]);
    let answer = daemon.open(Method::GET, "/images/a/get", &[], "").await;
    assert!(answer.into_body().collect().await.is_err());
    assert_eq!(daemon.get("/images/get").await.status, 400);
}

#[tokio::test]
async fn an_import_takes_a_body_or_a_url() {
    let daemon = Daemon::start();
    let id = daemon.image(&["one"], &[]);
    let expected = id.clone();
    *daemon.transfer.import.lock().unwrap() = Some(Box::new(move |order, mut archive| {
        let id = id.clone();
        async move {
            let mut bytes = Vec::new();
            while let Some(chunk) = archive.next().await {
                bytes.extend_from_slice(&chunk.unwrap());
            }
            assert_eq!(bytes, b"tree");
            assert_eq!(order.reference.unwrap().familiar(), "made:1");
            assert_eq!(order.changes, ["CMD [\"x\"]", "ENV A=1"]);
            assert!(order.message.starts_with("Imported from"));
            Ok(Imported { id })
        }
        .boxed()
    }));
    let query = "repo=made&tag=1&changes=CMD [\"x\"]&changes=ENV A=1";
    let golden = |reply: common::Reply| reply.golden().replace(expected.as_str(), "<id>");
    let reply = daemon.send(Method::POST, &format!("/images/create?fromSrc=-&{query}"), &[], "tree").await;
    insta::assert_snapshot!(golden(reply), @r#"200 {"status":"<id>"}⏎"#);
    let reply = daemon.post(&format!("/images/create?fromSrc=files/tree.tar&{query}")).await;
    insta::assert_snapshot!("import-url", golden(reply));
    insta::assert_snapshot!(daemon.post("/images/create?fromSrc=http://nope/x").await.golden(), @r#"404 {"message":"failed to GET http://nope/x with status 404 Not Found"}"#);
}

#[tokio::test]
async fn registries_are_asked_with_the_clients_credentials() {
    let daemon = Daemon::start();
    let auth = base64url(r#"{"username":"me","password":"x"}"#);
    let path = "/distribution/r:5000/app:1/json";
    insta::assert_snapshot!(
        "distribution",
        daemon.send(Method::GET, path, &[("x-registry-auth", &auth)], "").await.golden()
    );
    insta::assert_snapshot!(daemon.get(path).await.golden(), @r#"401 {"message":"unauthorized: authentication required"}"#);
    assert_eq!(daemon.get("/distribution/UP/json").await.status, 400);
}

fn base64url(text: &str) -> String {
    // Enough of base64 for a header: three bytes to four digits.
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
    text.as_bytes()
        .chunks(3)
        .flat_map(|chunk| {
            let bits = chunk.iter().fold(0_u32, |bits, byte| bits << 8 | u32::from(*byte))
                << (8 * (3 - chunk.len()));
            (0..=chunk.len()).map(move |at| char::from(DIGITS[(bits >> (18 - 6 * at) & 63) as usize]))
        })
        .collect()
}
