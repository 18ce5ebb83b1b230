//! The client's ssh agent, as a unix socket for a build step.

use std::{path::PathBuf, sync::Arc, time::Duration};

use lapstrake_api_proto::sshforward::{BytesMessage, CheckAgentRequest, ssh_client::SshClient};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{UnixListener, UnixStream},
    sync::{Semaphore, mpsc},
    task::{JoinHandle, JoinSet},
};
use tokio_stream::wrappers::ReceiverStream;

use crate::{
    Error, SessionCaller,
    channel::{self, SessionChannel},
    metadata,
};

const CHECK_AGENT: &str = "/moby.sshforward.v1.SSH/CheckAgent";
const FORWARD_AGENT: &str = "/moby.sshforward.v1.SSH/ForwardAgent";
/// The agent a step gets that names none.
pub const DEFAULT_SSH_ID: &str = "default";
/// Connections to one socket at a time; more wait to be accepted.
const MAX_CONNECTIONS: usize = 64;
const CHUNK: usize = 32 * 1024;

/// Where to put the socket and who may use it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SshSocket {
    /// The socket's path. Its directory must exist and be closed to others: the owner and mode are set after the socket is made.
    pub path: PathBuf,
    /// Owner; `None` leaves the daemon's.
    pub owner: Option<(u32, u32)>,
    /// Permission bits, such as `0o600`.
    pub mode: u32,
}

/// A forwarded agent. Dropping it closes the socket, removes it, and ends all its connections.
#[derive(Debug)]
pub struct SshAgent {
    path: PathBuf,
    accepting: JoinHandle<()>,
}

impl SshAgent {
    /// The socket, for `SSH_AUTH_SOCK`.
    pub fn path(&self) -> &std::path::Path {
        &self.path
    }
}

impl Drop for SshAgent {
    fn drop(&mut self) {
        // The task owns the listener and the set of connections; all go with it.
        self.accepting.abort();
        if let Err(error) = std::fs::remove_file(&self.path) {
            tracing::warn!(path = %self.path.display(), %error, "ssh agent socket not removed");
        }
    }
}

impl SessionCaller {
    /// Whether the client forwards the agent `id` (empty: `default`). Cancel-safe by drop.
    ///
    /// # Errors
    /// [`Error::Unsupported`] when it forwards none, [`Error::Call`] when not this one; [`Error::Closed`], [`Error::TimedOut`].
    pub async fn check_ssh_agent(&self, id: &str) -> Result<(), Error> {
        let request = CheckAgentRequest { id: or_default(id).to_owned() };
        let mut client = self.ssh();
        self.timed(CHECK_AGENT, client.check_agent(request)).await.map(drop)
    }

    /// Serves the agent `id` (empty: `default`) on a unix socket until the guard is dropped or the session ends. Whether the client
    /// knows the agent is asked first.
    ///
    /// Cancel-safe by drop. Must be called within a tokio runtime.
    ///
    /// # Errors
    /// Those of [`check_ssh_agent`](Self::check_ssh_agent), and [`Error::Socket`].
    pub async fn ssh_agent(&self, id: &str, socket: &SshSocket) -> Result<SshAgent, Error> {
        self.check_ssh_agent(id).await?;
        let failed = |source| Error::Socket { path: socket.path.clone(), source };
        let listener = UnixListener::bind(&socket.path).map_err(failed)?;
        // From here on the guard removes the socket, also when setting its owner fails.
        let accepting = tokio::spawn(accept(self.clone(), or_default(id).to_owned(), listener));
        let agent = SshAgent { path: socket.path.clone(), accepting };
        if let Some((uid, gid)) = socket.owner {
            std::os::unix::fs::lchown(&socket.path, Some(uid), Some(gid)).map_err(failed)?;
        }
        let mode = std::os::unix::fs::PermissionsExt::from_mode(socket.mode & 0o7777);
        std::fs::set_permissions(&socket.path, mode).map_err(failed)?;
        Ok(agent)
    }

    fn ssh(&self) -> SshClient<SessionChannel> {
        SshClient::with_origin(self.channel(), channel::origin())
    }
}

fn or_default(id: &str) -> &str {
    if id.is_empty() { DEFAULT_SSH_ID } else { id }
}

async fn accept(caller: SessionCaller, id: String, listener: UnixListener) {
    let slots = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    let mut connections = JoinSet::new();
    loop {
        let slot = Arc::clone(&slots).acquire_owned().await.expect("the semaphore is never closed");
        let connection = tokio::select! {
            accepted = listener.accept() => accepted,
            () = caller.closed().cancelled() => return,
        };
        match connection {
            Ok((connection, _)) => {
                let (caller, id) = (caller.clone(), id.clone());
                connections.spawn(async move {
                    if let Err(error) = bridge(&caller, &id, connection).await {
                        tracing::debug!(session = %caller.id(), %error, "ssh agent connection failed");
                    }
                    drop(slot);
                });
            }
            Err(error) => {
                // Out of file descriptors, most likely: give those in use time to be closed.
                tracing::warn!(%error, "ssh agent socket: accept failed");
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
        while connections.try_join_next().is_some() {}
    }
}

/// Copies both ways until both have ended; either side may close its half first.
async fn bridge(caller: &SessionCaller, id: &str, connection: UnixStream) -> Result<(), Error> {
    let (mut reader, mut writer) = connection.into_split();
    let (to_client, outgoing) = mpsc::channel(4);
    let mut request = tonic::Request::new(ReceiverStream::new(outgoing));
    metadata::append(request.metadata_mut(), "buildkit.ssh.id", id)?;
    let mut client = caller.ssh();

    let upstream = async {
        let mut buffer = vec![0; CHUNK];
        while let Ok(n @ 1..) = reader.read(&mut buffer).await {
            if to_client.send(BytesMessage { data: buffer[..n].to_vec() }).await.is_err() {
                break;
            }
        }
        drop(to_client);
        Ok::<(), Error>(())
    };
    let downstream = async {
        // Answered only when the agent has something to say, so the request must flow meanwhile.
        let mut answer = caller.guard(FORWARD_AGENT, client.forward_agent(request)).await?.into_inner();
        while let Some(message) = caller.guard(FORWARD_AGENT, answer.message()).await? {
            if writer.write_all(&message.data).await.is_err() {
                break;
            }
        }
        // The step may still be sending; it learns by end-of-file that nothing more comes.
        let _ = writer.shutdown().await;
        Ok(())
    };
    // An error on the client's side ends both; the end of one side only ends that side.
    tokio::try_join!(upstream, downstream).map(drop)
}
