//! Limits and patience.

use std::time::Duration;

/// How blobs are uploaded.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum UploadMode {
    /// One `PUT` with the whole blob.
    #[default]
    Monolithic,
    /// `PATCH`es of this many bytes, for registries behind proxies that limit a request's body.
    Chunked(u64),
}

/// Limits and patience of a client. The defaults suit a daemon; tests shorten them.
#[derive(Debug, Clone)]
pub struct ClientOptions {
    /// Sent as `User-Agent`.
    pub user_agent: String,
    /// Time to make a connection, TLS included.
    pub connect_timeout: Duration,
    /// Longest time without a byte in either direction.
    pub stall_timeout: Duration,
    /// Tries per request or blob (with no progress between them), the first included.
    pub max_attempts: u32,
    /// Wait before the second try; it doubles with each further one.
    pub backoff: Duration,
    /// Longest wait between tries, also when the registry asks for more (`Retry-After`).
    pub max_backoff: Duration,
    /// Layers downloaded at once per pull (Docker's default is 3).
    pub concurrent_downloads: usize,
    /// Layers uploaded at once per push (Docker's default is 5).
    pub concurrent_uploads: usize,
    /// Longest manifest or index in bytes (distribution's limit is 4 MiB).
    pub max_manifest: u64,
    /// Longest image config in bytes.
    pub max_config: u64,
    /// Upload mode.
    pub upload: UploadMode,
}

impl Default for ClientOptions {
    fn default() -> Self {
        ClientOptions {
            user_agent: concat!("lapstrake/", env!("CARGO_PKG_VERSION")).to_owned(),
            connect_timeout: Duration::from_secs(30),
            stall_timeout: Duration::from_secs(60),
            max_attempts: 5,
            backoff: Duration::from_millis(500),
            max_backoff: Duration::from_secs(30),
            concurrent_downloads: 3,
            concurrent_uploads: 5,
            max_manifest: 4 << 20,
            max_config: 8 << 20,
            upload: UploadMode::Monolithic,
        }
    }
}

impl ClientOptions {
    /// The wait before try number `attempt` (1 = the second try), with up to a quarter of jitter.
    pub(crate) fn backoff_before(&self, attempt: u32, asked: Option<Duration>) -> Duration {
        if let Some(asked) = asked {
            return asked.min(self.max_backoff);
        }
        let doubled = self.backoff.saturating_mul(1u32 << attempt.saturating_sub(1).min(16));
        doubled.mul_f64(1.0 + rand::random::<f64>() / 4.0).min(self.max_backoff)
    }
}
