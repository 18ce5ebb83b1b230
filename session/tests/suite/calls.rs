//! Registry, unary calls, ssh, uploads and exported files, against a client in the same process.

use std::{collections::BTreeMap, time::Duration};

use bytes::Bytes;
use futures::StreamExt;
use lapstrake_session::{
    CloseReason, Error, ExporterId, MAX_SECRET_SIZE, SessionId, Sessions, SshSocket, TokenRequest, Wait,
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::common::{Client, frequent, info, map};

#[tokio::test]
async fn a_session_that_connects_later_is_waited_for() {
    let sessions = Sessions::new();
    let waiting = tokio::spawn({
        let sessions = sessions.clone();
        async move { sessions.get("local:late", Wait::AtMost(Duration::from_secs(20))).await }
    });
    let (io, _kill) = Client::default().serve();
    let serving = tokio::spawn(sessions.register(info("late"), io).unwrap());
    let caller = waiting.await.unwrap().unwrap();
    assert_eq!(caller.id().as_str(), "late");
    assert_eq!(sessions.ids(), [caller.id().clone()]);
    serving.abort();
}

#[tokio::test]
async fn a_session_that_does_not_come_is_an_error_in_buildkits_words() {
    let error = Sessions::new().get("x", Wait::AtMost(Duration::ZERO)).await.unwrap_err();
    assert_eq!(error.to_string(), "no active session for x: context deadline exceeded");
    assert!(matches!(Sessions::new().get("x", Wait::Never).await, Err(Error::NoActiveSession { .. })));
    assert!(matches!(Sessions::new().get("", Wait::Never).await, Err(Error::NoActiveSession { .. })));
}

#[tokio::test]
async fn an_id_in_use_is_refused_and_free_again_after_the_session() {
    let session = Client::default().connect().await;
    let again = session.sessions.reserve(info("test"));
    assert!(matches!(again.map(drop), Err(Error::Duplicate { .. })));
    session.kill.cancel();
    session.serving.await.unwrap().unwrap();
    let reservation = session.sessions.reserve(info("test")).unwrap();
    assert!(session.sessions.reserve(info("test")).is_err(), "a reservation holds the id");
    drop(reservation);
    assert!(session.sessions.reserve(info("test")).is_ok());
}

#[tokio::test]
async fn a_client_that_is_killed_ends_the_session_and_the_calls_that_use_it() {
    let mut client = Client::default();
    client.credentials.insert("host".into(), ("hang".into(), "x".into()));
    let session = client.connect().await;
    let call = tokio::spawn({
        let caller = session.caller.clone();
        async move { caller.credentials("host").await }
    });
    // The call is on its way for sure once another one has been answered after it.
    session.caller.credentials("other").await.unwrap();
    session.kill.cancel();
    let error = call.await.unwrap().unwrap_err();
    assert!(matches!(error, Error::Closed { reason: CloseReason::Disconnected, .. }), "{error:?}");
    assert_eq!(session.serving.await.unwrap().unwrap(), CloseReason::Disconnected);
    assert!(session.caller.is_closed());
    assert!(session.sessions.ids().is_empty());
    assert!(matches!(session.caller.secret("s").await, Err(Error::Closed { .. })));
}

#[tokio::test]
async fn dropping_the_serving_future_ends_the_session() {
    let session = Client::default().connect().await;
    session.serving.abort();
    session.caller.closed().cancelled().await;
    let error = session.caller.credentials("h").await.unwrap_err();
    assert!(matches!(error, Error::Closed { reason: CloseReason::Dropped, .. }), "{error:?}");
}

#[tokio::test]
async fn a_client_that_answers_no_health_checks_is_dropped() {
    let (io, _kill) = Client { healthy: false, ..Client::default() }.serve();
    let mut description = info("sick");
    description.health = frequent(Duration::from_millis(10));
    let sessions = Sessions::new();
    let reason = sessions.register(description, io).unwrap().await.unwrap();
    assert_eq!(reason, CloseReason::Unhealthy);
    assert!(sessions.ids().is_empty());
}

#[tokio::test]
async fn a_healthy_client_is_kept() {
    let client = Client::default();
    let seen = client.seen.clone();
    let mut description = info("well");
    description.health = frequent(Duration::from_secs(60));
    let session = client.connect_as(description).await;
    while seen.lock().health_checks < 10 {
        session.caller.credentials("h").await.unwrap();
    }
    assert!(!session.caller.is_closed());
}

#[tokio::test]
async fn a_peer_that_speaks_no_http2_ends_the_session() {
    let (io, mut other) = tokio::io::duplex(4096);
    let sessions = Sessions::new();
    let serving = tokio::spawn(sessions.register(info("x"), io).unwrap());
    other.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n").await.unwrap();
    let end = serving.await.unwrap();
    assert!(matches!(end, Ok(CloseReason::Broken(_)) | Err(Error::Handshake { .. })), "{end:?}");
    assert!(sessions.ids().is_empty());
}

#[tokio::test]
async fn any_asks_the_next_session_when_one_fails() {
    let session =
        Client { secrets: [("s".to_owned(), b"v".to_vec())].into(), ..Client::default() }.connect().await;
    let (io, kill) = Client::default().serve();
    let serving = tokio::spawn(session.sessions.register(info("empty"), io).unwrap());
    session.sessions.get("empty", Wait::AtMost(Duration::from_secs(20))).await.unwrap();
    let ids: Vec<SessionId> = ["empty", "test"].iter().map(|s| SessionId::parse(s).unwrap()).collect();
    let found = session.sessions.any(&ids, |c| async move { c.secret("s").await }).await.unwrap();
    assert_eq!(found.expose(), b"v");
    let none = session.sessions.any(&[], |c| async move { c.secret("s").await }).await;
    assert_eq!(none.unwrap_err().to_string(), "no active sessions");
    kill.cancel();
    serving.await.unwrap().unwrap();
}

#[tokio::test]
async fn credentials_are_fetched_and_never_shown() {
    let mut client = Client::default();
    client.credentials.insert("registry".into(), ("user".into(), "pass".into()));
    let session = client.connect().await;
    let found = session.caller.credentials("registry").await.unwrap().unwrap();
    assert_eq!((found.username.as_str(), found.secret.as_str()), ("user", "pass"));
    assert!(!format!("{found:?}").contains("pass"));
    assert_eq!(session.caller.credentials("elsewhere").await.unwrap(), None);
    let request = TokenRequest { scopes: vec!["a".into(), "b".into()], ..TokenRequest::default() };
    let token = session.caller.fetch_token(request).await.unwrap();
    assert_eq!((token.token.as_str(), token.expires_in, token.issued_at), ("token for a b", 60, 1));
    assert!(!format!("{token:?}").contains("token for"));
}

#[tokio::test]
async fn token_authority_answers_are_checked() {
    let caller = Client::default().connect().await.caller;
    assert_eq!(caller.token_authority("host", b"salt").await.unwrap(), Some([5; 32]));
    assert_eq!(caller.token_authority("none", b"salt").await.unwrap(), None);
    assert!(matches!(caller.token_authority("short", b"salt").await, Err(Error::BadAnswer { .. })));
    let signed = caller.verify_token_authority("host", b"payload", b"salt").await.unwrap().unwrap();
    assert_eq!(&signed[64..], b"payload");
}

#[tokio::test]
async fn secrets_are_found_missing_or_too_big() {
    let mut client = Client::default();
    client.secrets.insert("good".into(), b"hunter2".to_vec());
    client.secrets.insert("edge".into(), vec![0; MAX_SECRET_SIZE]);
    client.secrets.insert("big".into(), vec![b'z'; MAX_SECRET_SIZE + 1]);
    let caller = client.connect().await.caller;
    let secret = caller.secret("good").await.unwrap();
    assert_eq!(secret.expose(), b"hunter2");
    assert!(!format!("{secret:?}").contains("hunter2"));
    assert_eq!(caller.secret("edge").await.unwrap().into_bytes().len(), MAX_SECRET_SIZE);
    let missing = caller.secret("nope").await.unwrap_err();
    assert_eq!(missing.to_string(), "secret nope: not found");
    let big = caller.secret("big").await.unwrap_err();
    assert!(matches!(big, Error::SecretTooBig { .. }));
    assert!(!format!("{big:?}").contains("zz"));
}

#[tokio::test]
async fn uploads_arrive_whole_and_unknown_ones_are_errors() {
    let data: Vec<u8> = (0..7_000_000_u32).map(|n| (n % 251) as u8).collect();
    let mut client = Client::default();
    client.uploads.insert("u1".into(), data.clone());
    client.uploads.insert("empty".into(), Vec::new());
    let seen = client.seen.clone();
    let caller = client.connect().await.caller;
    let mut got = Vec::new();
    caller.upload("u1").await.unwrap().into_reader().read_to_end(&mut got).await.unwrap();
    assert!(got == data);
    assert_eq!(seen.lock().upload_metadata.as_ref().unwrap().get("urlhost").unwrap(), "buildkit-session");
    assert!(caller.upload("/empty").await.unwrap().next().await.is_none());
    let error = match caller.upload("gone").await {
        Ok(_) => panic!("found"),
        Err(error) => error,
    };
    assert!(error.to_string().contains("no http response from session for gone"), "{error}");
}

#[tokio::test]
async fn an_agent_is_bridged_both_ways_until_the_guard_is_dropped() {
    let dir = tempfile::tempdir().unwrap();
    let session = Client::default().connect().await;
    let socket = SshSocket { path: dir.path().join("agent"), owner: Some((0, 0)), mode: 0o600 };
    let agent = session.caller.ssh_agent("", &socket).await.unwrap();
    let mode = std::os::unix::fs::MetadataExt::mode(&std::fs::metadata(agent.path()).unwrap());
    assert_eq!(mode & 0o777, 0o600);
    for _ in 0..3 {
        let mut connection = tokio::net::UnixStream::connect(agent.path()).await.unwrap();
        connection.write_all(b"hello ").await.unwrap();
        let mut answer = [0; 6];
        connection.read_exact(&mut answer).await.unwrap();
        assert_eq!(&answer, b"HELLO ");
        connection.shutdown().await.unwrap();
        let mut rest = Vec::new();
        connection.read_to_end(&mut rest).await.unwrap();
        assert_eq!(rest, b"BYE", "the client's half stays open when ours has ended");
    }
    let mut open = tokio::net::UnixStream::connect(agent.path()).await.unwrap();
    open.write_all(b"x").await.unwrap();
    open.read_exact(&mut [0]).await.unwrap();
    drop(agent);
    assert!(!socket.path.exists());
    assert_eq!(open.read(&mut [0]).await.unwrap_or(0), 0, "connections end with the guard");
}

#[tokio::test]
async fn an_agent_the_client_does_not_have_is_an_error_and_leaves_no_socket() {
    let dir = tempfile::tempdir().unwrap();
    let caller = Client::default().connect().await.caller;
    let socket = SshSocket { path: dir.path().join("agent"), owner: None, mode: 0o600 };
    let error = caller.ssh_agent("other", &socket).await.unwrap_err();
    assert!(error.to_string().contains("unset ssh forward key other"), "{error}");
    assert!(!socket.path.exists());
}

#[tokio::test]
async fn a_file_is_exported_with_its_metadata() {
    let client = Client::default();
    let seen = client.seen.clone();
    let caller = client.connect().await.caller;
    let metadata = map([("containerimage.digest", "sha256:abc")]);
    let mut sink = caller.send_file(ExporterId(3), &metadata).await.unwrap();
    let data: Vec<u8> = (0..5_000_000_u32).map(|n| (n % 253) as u8).collect();
    sink.write(Bytes::from(data.clone())).await.unwrap();
    sink.finish().await.unwrap();
    let seen = seen.lock();
    assert!(seen.file == data);
    assert_eq!(seen.file_complete, Some(true));
    let headers = seen.send_metadata.as_ref().unwrap();
    assert_eq!(headers.get("exporter-md-containerimage.digest").unwrap(), "sha256:abc");
    assert_eq!(headers.get("buildkit-attachable-exporter-id").unwrap(), "3");
}

#[tokio::test]
async fn a_file_may_be_written_from_blocking_code() {
    let client = Client::default();
    let seen = client.seen.clone();
    let caller = client.connect().await.caller;
    let mut sink = caller.send_file(ExporterId(0), &BTreeMap::new()).await.unwrap();
    let written = tokio::task::spawn_blocking(move || {
        for _ in 0..100 {
            sink.blocking_write(Bytes::from_static(&[1; 50_000]))?;
        }
        Ok::<_, Error>(sink)
    });
    written.await.unwrap().unwrap().finish().await.unwrap();
    assert_eq!(seen.lock().file.len(), 5_000_000);
}

#[tokio::test]
async fn a_sink_that_is_dropped_does_not_look_like_a_complete_file() {
    let client = Client::default();
    let seen = client.seen.clone();
    let session = client.connect().await;
    let mut sink = session.caller.send_file(ExporterId(0), &BTreeMap::new()).await.unwrap();
    sink.write(Bytes::from_static(b"half")).await.unwrap();
    drop(sink);
    // Each answer shows that the client has been at work since.
    while seen.lock().file_complete.is_none() {
        session.caller.credentials("h").await.unwrap();
    }
    assert_eq!(seen.lock().file_complete, Some(false));
}

#[tokio::test]
async fn an_existing_target_is_a_typed_error() {
    let caller = Client { export_refused: true, ..Client::default() }.connect().await.caller;
    let mut sink = caller.send_file(ExporterId(0), &BTreeMap::new()).await.unwrap();
    let result = loop {
        if let Err(error) = sink.write(Bytes::from(vec![0; 1 << 20])).await {
            break error;
        }
    };
    assert!(matches!(result, Error::TargetExists { .. }), "{result:?}");
}

#[tokio::test]
async fn methods_that_the_client_does_not_offer_are_refused_here() {
    let description = lapstrake_session::SessionInfo::new(SessionId::parse("bare").unwrap());
    let caller = Client::default().connect_as(description).await.caller;
    let error = caller.send_file(ExporterId(0), &BTreeMap::new()).await.unwrap_err();
    assert!(matches!(error, Error::Unsupported { .. }), "{error:?}");
}
