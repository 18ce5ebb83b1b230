//! A web server that answers as a test says.

use std::sync::Arc;

use axum::{body::Body, response::Response};
use parking_lot::Mutex;

/// A request that the server saw.
#[derive(Debug, Clone)]
pub(crate) struct Seen {
    pub method: String,
    pub path: String,
    pub headers: axum::http::HeaderMap,
}

impl Seen {
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name)?.to_str().ok()
    }
}

pub(crate) struct Server {
    /// `127.0.0.1:port`.
    pub host: String,
    pub log: Arc<Mutex<Vec<Seen>>>,
    task: tokio::task::JoinHandle<()>,
}

impl Drop for Server {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Server {
    pub(crate) async fn start(answer: impl Fn(&Seen) -> Response + Send + Sync + 'static) -> Server {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let host = listener.local_addr().unwrap().to_string();
        let log: Arc<Mutex<Vec<Seen>>> = Arc::default();
        let (answer, seen_log) = (Arc::new(answer), log.clone());
        let app = axum::Router::new().fallback(move |request: axum::extract::Request| {
            let (answer, log) = (answer.clone(), seen_log.clone());
            async move {
                let seen = Seen {
                    method: request.method().to_string(),
                    path: request.uri().path().to_owned(),
                    headers: request.headers().clone(),
                };
                log.lock().push(seen.clone());
                answer(&seen)
            }
        });
        let task = tokio::spawn(async move { axum::serve(listener, app).await.unwrap() });
        Server { host, log, task }
    }

    pub(crate) fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.host)
    }

    pub(crate) fn count(&self, method: &str) -> usize {
        self.log.lock().iter().filter(|seen| seen.method == method).count()
    }
}

pub(crate) fn status(status: u16) -> axum::http::response::Builder {
    Response::builder().status(status)
}

pub(crate) fn empty(code: u16) -> Response {
    status(code).body(Body::empty()).unwrap()
}
