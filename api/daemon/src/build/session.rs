//! What the command line offers to the build: secrets, ssh agents and OCI layouts, on a session of their own within this process.
//!
//! The engine asks a session for them over gRPC; here the other end of that connection is us.

use std::{collections::BTreeMap, path::PathBuf, pin::Pin};

use futures::{Stream, StreamExt as _};
use lapstrake_api_proto::{
    content::content_server,
    health::{
        HealthCheckRequest, HealthCheckResponse, HealthListRequest, HealthListResponse,
        health_check_response::ServingStatus, health_server,
    },
    secrets::{GetSecretRequest, GetSecretResponse, secrets_server},
    sshforward::{BytesMessage, CheckAgentRequest, CheckAgentResponse, ssh_server},
};
use lapstrake_session::{DEFAULT_SSH_ID, MAX_SECRET_SIZE, SessionId, SessionInfo, Sessions};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::UnixStream,
};
use tonic::{Request, Response, Status, Streaming, transport::Server};

use super::layouts::Layouts;
use crate::error::ProgramError;

/// Bytes that the two ends of the session may be apart.
const DEPTH: usize = 256 << 10;
const METHODS: [&str; 5] = [
    "/moby.buildkit.secrets.v1.Secrets/GetSecret",
    "/moby.sshforward.v1.SSH/CheckAgent",
    "/moby.sshforward.v1.SSH/ForwardAgent",
    "/containerd.services.content.v1.Content/Info",
    "/containerd.services.content.v1.Content/Read",
];

/// Where a secret is.
#[derive(Debug, Clone, PartialEq, Eq)]
enum SecretSource {
    File(PathBuf),
    Variable(String),
}

/// What is offered.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Offers {
    secrets: BTreeMap<String, SecretSource>,
    agents: BTreeMap<String, PathBuf>,
}

impl Offers {
    /// Reads `--secret` and `--ssh`. `variable` looks into the environment.
    pub(super) fn parse(
        secrets: &[String],
        ssh: &[String],
        variable: impl Fn(&str) -> Option<String>,
    ) -> Result<Self, ProgramError> {
        let mut offers = Self::default();
        for text in secrets {
            let wrong = |why: &str| ProgramError::setting(format!("--secret {text}"), why);
            let (mut id, mut file, mut name, mut kind) = (None, None, None, None);
            for field in text.split(',') {
                match field.split_once('=') {
                    Some(("id", value)) => id = Some(value.to_owned()),
                    Some(("src" | "source", value)) => file = Some(value.to_owned()),
                    Some(("env", value)) => name = Some(value.to_owned()),
                    Some(("type", value)) => kind = Some(value.to_owned()),
                    _ => return Err(wrong("is not id=ID with src=FILE or env=VARIABLE")),
                }
            }
            let id = id.filter(|id| !id.is_empty()).ok_or_else(|| wrong("has no id"))?;
            let source = match (kind.as_deref(), file, name) {
                (_, Some(_), Some(_)) => return Err(wrong("comes from a file or a variable, not from both")),
                (None | Some("file"), Some(file), None) => SecretSource::File(file.into()),
                (Some("env"), Some(name), None) | (None | Some("env"), None, Some(name)) => {
                    SecretSource::Variable(name)
                }
                // As BuildKit: a variable of that name, else a file.
                (None, None, None) if variable(&id).is_some() => SecretSource::Variable(id.clone()),
                (Some("env"), None, None) => SecretSource::Variable(id.clone()),
                (None | Some("file"), None, None) => SecretSource::File(id.clone().into()),
                _ => return Err(wrong("the type is neither file nor env")),
            };
            match &source {
                SecretSource::File(path) if !path.is_file() => return Err(wrong("no such file")),
                SecretSource::Variable(name) if variable(name).is_none() => {
                    return Err(wrong("the environment has no such variable"));
                }
                _ => {}
            }
            offers.secrets.insert(id, source);
        }
        for text in ssh {
            let wrong = |why: &str| ProgramError::setting(format!("--ssh {text}"), why);
            let (id, path) = match text.split_once('=') {
                Some((id, path)) => (id, PathBuf::from(path)),
                None => {
                    let socket = variable("SSH_AUTH_SOCK").filter(|path| !path.is_empty());
                    (
                        text.as_str(),
                        socket.ok_or_else(|| wrong("no agent runs: SSH_AUTH_SOCK is not set"))?.into(),
                    )
                }
            };
            if id.is_empty() {
                return Err(wrong("has no id"));
            }
            use std::os::unix::fs::FileTypeExt as _;
            if !std::fs::metadata(&path).is_ok_and(|found| found.file_type().is_socket()) {
                return Err(wrong(
                    "is not an agent's socket; key files are not read: ssh-add them to an agent",
                ));
            }
            offers.agents.insert(id.to_owned(), path);
        }
        Ok(offers)
    }

    /// Opens the session. It lives for as long as the runtime does.
    pub(super) fn open(self, layouts: Layouts, sessions: &Sessions) -> Result<SessionId, ProgramError> {
        let id = SessionId::parse(&format!("build-{:016x}", rand::random::<u64>())).expect("not empty");
        let info = SessionInfo::new(id.clone()).with_methods(METHODS);
        let (engine_end, our_end) = tokio::io::duplex(DEPTH);
        let served = sessions
            .register(info, engine_end)
            .map_err(|error| ProgramError::setting("session", error.to_string()))?;
        tokio::spawn(async move {
            if let Err(error) = served.await {
                tracing::warn!(%error, "session of this build ended");
            }
        });
        let incoming =
            futures::stream::iter([Ok::<_, std::io::Error>(our_end)]).chain(futures::stream::pending());
        let server = Server::builder()
            .add_service(secrets_server::SecretsServer::new(self.clone()))
            .add_service(ssh_server::SshServer::new(self.clone()))
            .add_service(content_server::ContentServer::new(layouts))
            .add_service(health_server::HealthServer::new(self));
        tokio::spawn(async move {
            if let Err(error) = server.serve_with_incoming(incoming).await {
                tracing::warn!(%error, "session of this build is not served");
            }
        });
        Ok(id)
    }

    fn read(&self, id: &str) -> Result<Vec<u8>, Status> {
        let source =
            self.secrets.get(id).ok_or_else(|| Status::not_found(format!("secret {id}: not found")))?;
        match source {
            SecretSource::Variable(name) => {
                let value = std::env::var_os(name);
                let value =
                    value.ok_or_else(|| Status::not_found(format!("secret {id}: no variable {name}")))?;
                Ok(std::os::unix::ffi::OsStringExt::into_vec(value))
            }
            SecretSource::File(path) => {
                let failed = |error: std::io::Error| {
                    Status::internal(format!("secret {id}: {}: {error}", path.display()))
                };
                let mut data = Vec::new();
                let file = std::fs::File::open(path).map_err(failed)?;
                std::io::Read::read_to_end(
                    &mut std::io::Read::take(file, MAX_SECRET_SIZE as u64 + 1),
                    &mut data,
                )
                .map_err(failed)?;
                Ok(data)
            }
        }
    }
}

#[tonic::async_trait]
impl secrets_server::Secrets for Offers {
    async fn get_secret(
        &self,
        request: Request<GetSecretRequest>,
    ) -> Result<Response<GetSecretResponse>, Status> {
        let data = self.read(&request.get_ref().id)?;
        Ok(Response::new(GetSecretResponse { data }))
    }
}

type Bytes = Pin<Box<dyn Stream<Item = Result<BytesMessage, Status>> + Send>>;

#[tonic::async_trait]
impl ssh_server::Ssh for Offers {
    type ForwardAgentStream = Bytes;

    async fn check_agent(
        &self,
        request: Request<CheckAgentRequest>,
    ) -> Result<Response<CheckAgentResponse>, Status> {
        self.agent(&request.get_ref().id)?;
        Ok(Response::new(CheckAgentResponse {}))
    }

    async fn forward_agent(
        &self,
        request: Request<Streaming<BytesMessage>>,
    ) -> Result<Response<Bytes>, Status> {
        let id = request
            .metadata()
            .get("buildkit.ssh.id")
            .and_then(|id| id.to_str().ok())
            .unwrap_or(DEFAULT_SSH_ID);
        let path = self.agent(id)?;
        let agent = UnixStream::connect(&path)
            .await
            .map_err(|error| Status::unavailable(format!("{}: {error}", path.display())))?;
        let (answers, mut questions) = agent.into_split();
        let mut incoming = request.into_inner();
        tokio::spawn(async move {
            while let Ok(Some(message)) = incoming.message().await {
                if questions.write_all(&message.data).await.is_err() {
                    return;
                }
            }
            // The step said all it has to say; the agent may still answer.
            let _ = questions.shutdown().await;
        });
        let stream = futures::stream::unfold(answers, |mut answers| async move {
            let mut data = vec![0; 32 << 10];
            match answers.read(&mut data).await {
                Ok(0) | Err(_) => None,
                Ok(count) => {
                    data.truncate(count);
                    Some((Ok(BytesMessage { data }), answers))
                }
            }
        });
        Ok(Response::new(Box::pin(stream)))
    }
}

impl Offers {
    fn agent(&self, id: &str) -> Result<PathBuf, Status> {
        let id = if id.is_empty() { DEFAULT_SSH_ID } else { id };
        self.agents
            .get(id)
            .cloned()
            .ok_or_else(|| Status::not_found(format!("no ssh agent {id} was offered")))
    }
}

#[tonic::async_trait]
impl health_server::Health for Offers {
    type WatchStream = futures::stream::Empty<Result<HealthCheckResponse, Status>>;

    async fn check(&self, _: Request<HealthCheckRequest>) -> Result<Response<HealthCheckResponse>, Status> {
        Ok(Response::new(HealthCheckResponse { status: ServingStatus::Serving.into() }))
    }

    async fn list(&self, _: Request<HealthListRequest>) -> Result<Response<HealthListResponse>, Status> {
        Err(Status::unimplemented("sessions are only checked"))
    }

    async fn watch(&self, _: Request<HealthCheckRequest>) -> Result<Response<Self::WatchStream>, Status> {
        Err(Status::unimplemented("sessions are only checked"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn offers(secrets: &[&str], ssh: &[&str]) -> Result<Offers, String> {
        let own = |texts: &[&str]| texts.iter().map(|text| (*text).to_owned()).collect::<Vec<_>>();
        let variable = |name: &str| (name == "TOKEN").then(|| "t".to_owned());
        Offers::parse(&own(secrets), &own(ssh), variable).map_err(|error| error.to_string())
    }

    #[test]
    fn secrets_come_from_files_and_variables() {
        let found =
            offers(&["id=a,src=/etc/hostname", "id=b,env=TOKEN", "id=TOKEN", "type=env,id=c,src=TOKEN"], &[])
                .unwrap();
        assert_eq!(found.secrets["a"], SecretSource::File("/etc/hostname".into()));
        for id in ["b", "TOKEN", "c"] {
            assert_eq!(found.secrets[id], SecretSource::Variable("TOKEN".to_owned()), "{id}");
        }
        for (text, why) in [
            ("src=x", "has no id"),
            ("id=a,src=/no/such", "no such file"),
            ("id=a,env=NOPE", "no such variable"),
            ("id=a,src=x,env=y", "not from both"),
            ("id=a,what=x", "is not id=ID"),
            ("id=a,type=vault", "neither file nor env"),
        ] {
            let error = offers(&[text], &[]).unwrap_err();
            assert!(error.contains(why), "{text}: {error}");
        }
    }

    #[test]
    fn agents_are_sockets() {
        assert!(offers(&[], &["default"]).unwrap_err().contains("SSH_AUTH_SOCK"));
        assert!(offers(&[], &["id=/etc/hostname"]).unwrap_err().contains("key files"));
    }
}
