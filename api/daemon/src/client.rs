//! Asks a daemon on its unix socket.

use std::{path::PathBuf, time::Duration};

use bytes::Bytes;
use http::{Method, Request, header};
use http_body_util::{BodyExt as _, Empty, Limited};
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

    fn ask<T: DeserializeOwned>(&self, method: Method, path: &str) -> Result<T, ProgramError> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(ProgramError::system("start a client"))?;
        let (status, body) = runtime.block_on(async {
            match tokio::time::timeout(ANSWER_TIME, self.exchange(method, path)).await {
                Ok(answer) => answer,
                Err(_) => Err(self.wrong(format!("no answer in {} s", ANSWER_TIME.as_secs()))),
            }
        })?;
        if !status.is_success() {
            let message = serde_json::from_slice::<Refusal>(&body).map(|refusal| refusal.message);
            return Err(self.wrong(message.unwrap_or_else(|_| status.to_string())));
        }
        serde_json::from_slice(&body).map_err(|error| self.wrong(format!("{path}: {error}")))
    }

    async fn exchange(&self, method: Method, path: &str) -> Result<(http::StatusCode, Bytes), ProgramError> {
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
        let response = sender.send_request(request).await.map_err(failed)?;
        let status = response.status();
        let body = Limited::new(response.into_body(), ANSWER_LIMIT)
            .collect()
            .await
            .map_err(|error| self.wrong(error.to_string()))?;
        Ok((status, body.to_bytes()))
    }

    fn wrong(&self, why: String) -> ProgramError {
        ProgramError::setting(format!("daemon on unix://{}", self.socket.display()), why)
    }
}
