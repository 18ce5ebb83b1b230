//! Asks a daemon on its unix socket.

use std::{io::Write, path::PathBuf, time::Duration};

use bytes::Bytes;
use http::{Method, Request, header};
use http_body_util::{BodyExt as _, Empty, Limited};
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use serde::{Deserialize, de::DeserializeOwned};
use tokio::net::UnixStream;

use crate::{error::ProgramError, host::Host};

/// Longest answer: a listing of a large cache is some megabytes.
const ANSWER_LIMIT: usize = 256 << 20;
/// Longest time for one: pruning deletes files.
const ANSWER_TIME: Duration = Duration::from_secs(60 * 60);

/// A daemon, by its socket.
pub(crate) struct DaemonClient {
    socket: PathBuf,
}

#[derive(Deserialize)]
struct Refusal {
    message: String,
}

impl DaemonClient {
    /// The daemon on this host, which must be a unix socket.
    pub(crate) fn new(host: Host) -> Result<Self, ProgramError> {
        match host {
            Host::Unix(socket) => Ok(Self { socket }),
            other => Err(ProgramError::setting(format!("--host {other}"), "only unix:// is asked here")),
        }
    }

    /// `GET`.
    pub(crate) fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T, ProgramError> {
        self.ask(Method::GET, path)
    }

    /// `POST` without a body.
    pub(crate) fn post<T: DeserializeOwned>(&self, path: &str) -> Result<T, ProgramError> {
        self.ask(Method::POST, path)
    }

    /// `DELETE`.
    pub(crate) fn delete<T: DeserializeOwned>(&self, path: &str) -> Result<T, ProgramError> {
        self.ask(Method::DELETE, path)
    }

    /// `GET` of something that is written down as it comes, however long that takes.
    pub(crate) fn copy(&self, path: &str, to: &mut impl Write) -> Result<(), ProgramError> {
        runtime()?.block_on(async {
            let response = self.send(Method::GET, path).await?;
            let status = response.status();
            let mut body = response.into_body();
            if !status.is_success() {
                let body = self.whole(body).await?;
                return Err(self.refusal(status, &body));
            }
            while let Some(frame) = body.frame().await {
                let frame = frame.map_err(|error| self.wrong(error.to_string()))?;
                let Some(data) = frame.data_ref() else { continue };
                if to.write_all(data).and_then(|()| to.flush()).is_err() {
                    // Who reads (`| head`) has read enough.
                    return Ok(());
                }
            }
            Ok(())
        })
    }

    fn ask<T: DeserializeOwned>(&self, method: Method, path: &str) -> Result<T, ProgramError> {
        let runtime = runtime()?;
        let (status, body) = runtime.block_on(async {
            match tokio::time::timeout(ANSWER_TIME, self.exchange(method, path)).await {
                Ok(answer) => answer,
                Err(_) => Err(self.wrong(format!("no answer in {} s", ANSWER_TIME.as_secs()))),
            }
        })?;
        if !status.is_success() {
            return Err(self.refusal(status, &body));
        }
        serde_json::from_slice(&body).map_err(|error| self.wrong(format!("{path}: {error}")))
    }

    async fn exchange(&self, method: Method, path: &str) -> Result<(http::StatusCode, Bytes), ProgramError> {
        let response = self.send(method, path).await?;
        let status = response.status();
        Ok((status, self.whole(response.into_body()).await?))
    }

    async fn whole(&self, body: Incoming) -> Result<Bytes, ProgramError> {
        let body = Limited::new(body, ANSWER_LIMIT)
            .collect()
            .await
            .map_err(|error| self.wrong(error.to_string()))?;
        Ok(body.to_bytes())
    }

    fn refusal(&self, status: http::StatusCode, body: &[u8]) -> ProgramError {
        let message = serde_json::from_slice::<Refusal>(body).map(|refusal| refusal.message);
        self.wrong(message.unwrap_or_else(|_| status.to_string()))
    }

    async fn send(&self, method: Method, path: &str) -> Result<http::Response<Incoming>, ProgramError> {
        let stream = UnixStream::connect(&self.socket).await.map_err(|error| {
            self.wrong(format!(
                "{error}; a daemon has the store open: say with --host where it listens (unix:///path)"
            ))
        })?;
        let failed = |error: hyper::Error| self.wrong(error.to_string());
        let (mut sender, connection) =
            hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(failed)?;
        // Ends with the exchange.
        tokio::spawn(connection);
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header(header::HOST, "lapstrake")
            .body(Empty::<Bytes>::new())
            .map_err(|error| self.wrong(error.to_string()))?;
        sender.send_request(request).await.map_err(failed)
    }

    fn wrong(&self, why: String) -> ProgramError {
        ProgramError::setting(format!("daemon on unix://{}", self.socket.display()), why)
    }
}

fn runtime() -> Result<tokio::runtime::Runtime, ProgramError> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(ProgramError::system("start a client"))
}
