//! The crate's one error type.

use std::path::PathBuf;

use crate::SessionId;

/// What can go wrong while registering, finding or using a session.
///
/// No variant carries a secret, a credential or a token.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The request that opens a session lacks its id, or a header is not text.
    #[error("session request: header {header} is missing or not valid text")]
    BadHeader {
        /// The header's name.
        header: &'static str,
    },
    /// Another live session has this id.
    #[error("session {id} already exists")]
    Duplicate {
        /// The id both want.
        id: SessionId,
    },
    /// No session with this id connected in time. The wording is BuildKit's: clients look for it.
    #[error("no active session for {id}: context deadline exceeded")]
    NoActiveSession {
        /// The id that was asked for.
        id: String,
    },
    /// A call may use any of several sessions, and there is none.
    #[error("no active sessions")]
    NoActiveSessions,
    /// The HTTP/2 handshake with the client failed.
    #[error("session {id}: handshake failed")]
    Handshake {
        /// The session.
        id: SessionId,
        /// What hyper said.
        source: hyper::Error,
    },
    /// The session ended while it was needed.
    #[error("session {id} ended: {reason}")]
    Closed {
        /// The session.
        id: SessionId,
        /// Why it ended.
        reason: CloseReason,
    },
    /// The caller's token was cancelled.
    #[error("session {id}: {operation} cancelled")]
    Cancelled {
        /// The session.
        id: SessionId,
        /// What was being done.
        operation: &'static str,
    },
    /// The client does not offer the method.
    #[error("session {id}: client does not support {method}")]
    Unsupported {
        /// The session.
        id: SessionId,
        /// gRPC path, `/service/method`.
        method: &'static str,
    },
    /// The client answered a call with an error.
    #[error("session {id}: {method}: {}", status.message())]
    Call {
        /// The session.
        id: SessionId,
        /// gRPC path, `/service/method`.
        method: &'static str,
        /// The client's answer, with its gRPC code.
        status: Box<tonic::Status>,
    },
    /// The client answered with something that breaks the call's rules.
    #[error("session {id}: {method}: {problem}")]
    BadAnswer {
        /// The session.
        id: SessionId,
        /// gRPC path, `/service/method`.
        method: &'static str,
        /// Which rule.
        problem: &'static str,
    },
    /// The client took too long to answer.
    #[error("session {id}: {method}: no answer within {seconds} s")]
    TimedOut {
        /// The session.
        id: SessionId,
        /// gRPC path, `/service/method`.
        method: &'static str,
        /// How long was waited.
        seconds: u64,
    },
    /// The client has no secret with this id.
    #[error("secret {secret}: not found")]
    SecretNotFound {
        /// The secret's id, not its value.
        secret: String,
    },
    /// The secret is larger than BuildKit allows.
    #[error("secret {secret} too big: {size} bytes, at most {limit}")]
    SecretTooBig {
        /// The secret's id, not its value.
        secret: String,
        /// Its size in bytes.
        size: usize,
        /// The limit in bytes.
        limit: usize,
    },
    /// The client refuses to overwrite the file that an export would write.
    #[error("session {id}: export target already exists")]
    TargetExists {
        /// The session.
        id: SessionId,
    },
    /// A request's metadata cannot be put into an HTTP header.
    #[error("metadata {key}: value cannot be sent as a header")]
    BadMetadata {
        /// The header's name.
        key: String,
    },
    /// The socket that stands for the client's ssh agent could not be made.
    #[error("ssh agent socket {path}")]
    Socket {
        /// Where.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// A directory transfer failed.
    #[error("session {id}: {transfer}")]
    Transfer {
        /// The session.
        id: SessionId,
        /// What failed.
        #[source]
        transfer: Box<TransferError>,
    },
}

/// Why a session ended.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum CloseReason {
    /// The client closed the connection.
    #[error("client disconnected")]
    Disconnected,
    /// The connection broke, or the client broke HTTP/2.
    #[error("connection lost: {0}")]
    Broken(String),
    /// The client stopped answering health checks.
    #[error("session healthcheck failed fatally")]
    Unhealthy,
    /// The daemon stopped serving it.
    #[error("session dropped by the daemon")]
    Dropped,
}

/// Why a directory transfer failed. Paths are relative to the directory being transferred.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TransferError {
    /// The peer sent a path that is empty, absolute, unclean, too long, or leads outside.
    #[error("invalid path {path:?}: {problem}")]
    BadPath {
        /// The path as sent (undecodable bytes replaced).
        path: String,
        /// Which rule it breaks.
        problem: &'static str,
    },
    /// Paths must come sorted, and each after its parent directory.
    #[error("changes out of order: {path:?} after {previous:?}")]
    OutOfOrder {
        /// The path that came.
        path: PathBuf,
        /// The one before it.
        previous: PathBuf,
    },
    /// A hard link to something that was not announced as a file.
    #[error("invalid link {path:?} to unknown path {target:?}")]
    BadLink {
        /// The link.
        path: PathBuf,
        /// What it points to.
        target: PathBuf,
    },
    /// A device node, socket, or a mode that no file has.
    #[error("{path:?}: refused: {kind}")]
    Refused {
        /// The entry.
        path: PathBuf,
        /// What it is.
        kind: &'static str,
    },
    /// The file's data is longer or shorter than announced: it changed while it was being sent.
    #[error("{path:?} changed while it was sent: announced {announced} bytes, got {got}")]
    SizeChanged {
        /// The file.
        path: PathBuf,
        /// Bytes announced.
        announced: u64,
        /// Bytes that came (at least, when longer).
        got: u64,
    },
    /// A packet that the protocol does not allow here.
    #[error("protocol error: {problem}")]
    Protocol {
        /// What is wrong.
        problem: &'static str,
    },
    /// The tree is larger than the caller allows.
    #[error("directory too large: more than {limit} {unit}")]
    TooLarge {
        /// The limit.
        limit: u64,
        /// Of what.
        unit: &'static str,
    },
    /// The peer reported an error.
    #[error("error from client: {message}")]
    Peer {
        /// The peer's words.
        message: String,
    },
    /// The peer ended the transfer early.
    #[error("transfer ended before it was complete")]
    Truncated,
    /// Another transfer is writing into the destination.
    #[error("destination directory is in use by another transfer")]
    DestinationBusy,
    /// The local file system failed.
    #[error("{operation} {path:?}: {source}")]
    Io {
        /// What was being done.
        operation: &'static str,
        /// On what.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// The stored index of an earlier transfer cannot be read.
    #[error("index of an earlier transfer is damaged")]
    BadIndex,
}
