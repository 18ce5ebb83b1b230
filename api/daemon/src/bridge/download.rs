//! `docker import http://…`: an archive behind a URL, as it comes.

use std::{io, time::Duration};

use futures::{StreamExt as _, TryStreamExt as _};
use lapstrake_api_server::{ApiError, ApiErrorKind, BodyStream};
use reqwest::Url;

use crate::error::chain;

/// Time to make a connection.
const CONNECT: Duration = Duration::from_secs(30);
/// Longest time without a byte.
const STALL: Duration = Duration::from_secs(60);

/// Opens it; with its length, where the server says one.
pub(super) async fn open(url: &str) -> Result<(BodyStream, Option<u64>), ApiError> {
    let parsed = Url::parse(url).map_err(|error| ApiError::invalid(format!("URL {url:?}: {error}")))?;
    if !matches!(parsed.scheme(), "http" | "https") {
        return Err(ApiError::invalid(format!("URL {url:?}: neither http nor https")));
    }
    let failed = |error: reqwest::Error| {
        ApiError::new(ApiErrorKind::Unavailable, format!("get {url}: {}", chain(&error)))
    };
    let client = reqwest::Client::builder()
        .user_agent(concat!("lapstrake/", env!("CARGO_PKG_VERSION")))
        .connect_timeout(CONNECT)
        .read_timeout(STALL)
        .build()
        .map_err(failed)?;
    let response = client.get(parsed).send().await.map_err(failed)?;
    if !response.status().is_success() {
        return Err(ApiError::new(ApiErrorKind::Unavailable, format!("get {url}: {}", response.status())));
    }
    let length = response.content_length();
    Ok((response.bytes_stream().map_err(io::Error::other).boxed(), length))
}

#[cfg(test)]
mod tests {
    use tokio::{
        io::{AsyncReadExt as _, AsyncWriteExt as _},
        net::TcpListener,
    };

    use super::*;

    /// A server that gives one answer.
    async fn server(answer: &'static str) -> String {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut request = [0; 4096];
            let _ = stream.read(&mut request).await.unwrap();
            stream.write_all(answer.as_bytes()).await.unwrap();
        });
        format!("http://{address}/x.tar")
    }

    #[tokio::test]
    async fn what_the_server_sends_arrives_with_its_length() {
        let url = server("HTTP/1.1 200 OK\r\nContent-Length: 5\r\nConnection: close\r\n\r\nhello").await;
        let (body, length) = open(&url).await.unwrap();
        assert_eq!(length, Some(5));
        let chunks: Vec<bytes::Bytes> = body.try_collect().await.unwrap();
        assert_eq!(chunks.concat(), b"hello");
    }

    #[tokio::test]
    async fn a_body_cut_short_is_an_error() {
        let url = server("HTTP/1.1 200 OK\r\nContent-Length: 50\r\nConnection: close\r\n\r\nhello").await;
        let (body, _) = open(&url).await.unwrap();
        assert!(body.try_collect::<Vec<_>>().await.is_err());
    }

    #[tokio::test]
    async fn refusals_name_the_url() {
        let url = server("HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\nConnection: close\r\n\r\n").await;
        let error = open(&url).await.err().unwrap();
        assert!(error.message.contains(&url) && error.message.contains("404"), "{error}");
        for url in ["file:///etc/passwd", "nonsense"] {
            assert!(open(url).await.err().unwrap().message.contains(url));
        }
    }
}
