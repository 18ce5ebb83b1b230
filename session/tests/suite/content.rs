//! Blobs of a client's OCI layouts.

use std::time::Duration;

use futures::{StreamExt, TryStreamExt, stream::BoxStream};
use lapstrake_api_proto::content::{
    Info, InfoRequest, InfoResponse, ReadContentRequest, ReadContentResponse,
    content_server::{Content, ContentServer},
};
use lapstrake_session::{CONTENT_STORE_HEADER, Error, SessionCaller, SessionId, SessionInfo, Sessions, Wait};
use tonic::{Code, Request, Response, Status, service::Routes, transport::Server};

/// Has the blob `there`, and `mixed`, which it sends in the wrong order, in the store `oci:mine`.
struct Layouts;

fn check<T>(request: &Request<T>) -> Result<(), Status> {
    let store = request.metadata().get(CONTENT_STORE_HEADER).map(|store| store.to_str().unwrap());
    if store == Some("oci:mine") {
        Ok(())
    } else {
        Err(Status::not_found(format!("unknown store {store:?}")))
    }
}

#[tonic::async_trait]
impl Content for Layouts {
    async fn info(&self, request: Request<InfoRequest>) -> Result<Response<InfoResponse>, Status> {
        check(&request)?;
        let digest = request.into_inner().digest;
        match digest.as_str() {
            "there" => Ok(Response::new(InfoResponse { info: Some(Info { digest, size: 6 }) })),
            "empty-handed" => Ok(Response::new(InfoResponse { info: None })),
            _ => Err(Status::not_found("no such blob")),
        }
    }

    async fn read(
        &self,
        request: Request<ReadContentRequest>,
    ) -> Result<Response<BoxStream<'static, Result<ReadContentResponse, Status>>>, Status> {
        check(&request)?;
        let part = |offset, data: &str| Ok(ReadContentResponse { offset, data: data.into() });
        let parts = match request.into_inner().digest.as_str() {
            "there" => vec![part(0, "abc"), part(3, "def")],
            "mixed" => vec![part(3, "def"), part(0, "abc")],
            _ => return Err(Status::not_found("no such blob")),
        };
        Ok(Response::new(futures::stream::iter(parts).boxed()))
    }
}

/// A session with a client that offers these services.
pub(crate) async fn connect(services: Routes) -> SessionCaller {
    let sessions = Sessions::new();
    let info = SessionInfo::new(SessionId::parse("test").unwrap());
    let (daemon, client) = tokio::io::duplex(64 << 10);
    let served = sessions.register(info, daemon).unwrap();
    tokio::spawn(async move { served.await.map(drop) });
    let incoming = futures::stream::iter([Ok::<_, std::io::Error>(client)]).chain(futures::stream::pending());
    tokio::spawn(Server::builder().add_routes(services).serve_with_incoming(incoming));
    sessions.get("test", Wait::AtMost(Duration::from_secs(20))).await.unwrap()
}

async fn read(caller: &SessionCaller, layout: &str, digest: &str) -> Result<Vec<u8>, Error> {
    let blob = caller.layout_blob(layout, digest).await?;
    let parts: Vec<_> = blob.try_collect().await?;
    Ok(parts.concat())
}

#[tokio::test]
async fn a_blob_of_the_layout_that_was_named_arrives_whole() {
    let caller = connect(Routes::new(ContentServer::new(Layouts))).await;
    assert_eq!(caller.layout_blob_size("mine", "there").await.unwrap(), Some(6));
    assert_eq!(read(&caller, "mine", "there").await.unwrap(), b"abcdef");
}

#[tokio::test]
async fn what_is_not_there_or_out_of_order_is_an_error() {
    let caller = connect(Routes::new(ContentServer::new(Layouts))).await;
    assert_eq!(caller.layout_blob_size("mine", "none").await.unwrap(), None);
    assert_eq!(caller.layout_blob_size("theirs", "there").await.unwrap(), None);
    for (layout, digest) in [("mine", "none"), ("theirs", "there")] {
        let error = read(&caller, layout, digest).await.unwrap_err();
        assert!(matches!(&error, Error::Call { status, .. } if status.code() == Code::NotFound), "{error}");
    }
    let error = read(&caller, "mine", "mixed").await.unwrap_err();
    assert!(matches!(error, Error::BadAnswer { problem: "bytes out of order", .. }), "{error}");
    let error = caller.layout_blob_size("mine", "empty-handed").await.unwrap_err();
    assert!(matches!(error, Error::BadAnswer { .. }), "{error}");
}

#[tokio::test]
async fn a_client_without_layouts_says_so() {
    let caller = connect(Routes::default()).await;
    let error = caller.layout_blob_size("mine", "there").await.unwrap_err();
    assert!(matches!(error, Error::Unsupported { .. }), "{error}");
    let error = read(&caller, "mine", "there").await.unwrap_err();
    assert!(matches!(error, Error::Unsupported { .. }), "{error}");
}
