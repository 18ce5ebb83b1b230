//! What gives access to a remote: the client's secrets and ssh agent.

use std::{path::Path, sync::Arc};

use lapstrake_session::{Error, Secret, SshAgent, SshSocket, Wait};

use super::{
    GitSpec,
    program::GitSsh,
    url::{Remote, Transport},
};
use crate::{SourceContext, SourceError, sources::Shared};

/// Access to one remote, while this lives.
#[derive(Default)]
pub(super) struct Access {
    /// Git configuration with credentials in it.
    pub(super) config: Vec<(String, String)>,
    pub(super) ssh: GitSsh,
    _agent: Option<SshAgent>,
    _dir: Option<tempfile::TempDir>,
}

impl Access {
    /// Asks the clients that wait.
    pub(super) async fn find(
        shared: &Arc<Shared>,
        spec: &GitSpec,
        cx: &SourceContext,
    ) -> Result<Self, SourceError> {
        let mut access = Self::default();
        match spec.remote.transport {
            Transport::Http | Transport::Https => {
                if let Some(header) = header(shared, spec, cx).await? {
                    let key = format!("http.{}.extraHeader", scope(&spec.remote));
                    access.config.push((key, format!("Authorization: {header}")));
                }
            }
            Transport::Ssh => access.ssh(shared, spec, cx).await?,
            Transport::Git => {}
        }
        Ok(access)
    }

    async fn ssh(
        &mut self,
        shared: &Arc<Shared>,
        spec: &GitSpec,
        cx: &SourceContext,
    ) -> Result<(), SourceError> {
        if spec.ssh_agent.is_none() && spec.known_hosts.is_none() {
            return Ok(());
        }
        let made = SourceError::io("make a directory for ssh in", &shared.root);
        let dir = private_dir(&shared.root).map_err(made)?;
        if let Some(hosts) = &spec.known_hosts {
            let path = dir.path().join("known_hosts");
            std::fs::write(&path, hosts).map_err(SourceError::io("write", &path))?;
            self.ssh.known_hosts = Some(path);
        }
        if let Some(id) = &spec.ssh_agent {
            let socket = SshSocket { path: dir.path().join("agent"), owner: None, mode: 0o600 };
            let agent = agent(shared, cx, id, &socket).await.map_err(|error| match error {
                Error::Unsupported { .. } | Error::Call { .. } | Error::NoActiveSessions => {
                    SourceError::Refused {
                        origin: spec.origin(),
                        why: format!("no SSH key {id:?} forwarded from the client"),
                    }
                }
                error => SourceError::session(&spec.origin())(error),
            })?;
            self.ssh.agent = Some(agent.path().to_owned());
            self._agent = Some(agent);
        }
        self._dir = Some(dir);
        Ok(())
    }
}

/// A directory that nobody else may look into.
fn private_dir(root: &Path) -> std::io::Result<tempfile::TempDir> {
    std::fs::create_dir_all(root)?;
    // Its mode is 0700.
    tempfile::Builder::new().prefix("ssh-").tempdir_in(root)
}

/// The agent `id` of the first client that forwards it.
async fn agent(shared: &Shared, cx: &SourceContext, id: &str, socket: &SshSocket) -> Result<SshAgent, Error> {
    let mut last = Error::NoActiveSessions;
    for session in &cx.sessions {
        match shared.sessions.get(session.as_str(), Wait::default()).await {
            Ok(caller) => match caller.ssh_agent(id, socket).await {
                Ok(agent) => return Ok(agent),
                Err(error) => last = error,
            },
            Err(error) => last = error,
        }
    }
    Err(last)
}

/// The secret `name` of the first client that has it.
async fn secret(shared: &Shared, cx: &SourceContext, name: &str) -> Result<Option<Secret>, Error> {
    for session in &cx.sessions {
        let Ok(caller) = shared.sessions.get(session.as_str(), Wait::default()).await else { continue };
        match caller.secret(name).await {
            Ok(secret) => return Ok(Some(secret)),
            Err(Error::SecretNotFound { .. }) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(None)
}

/// The `Authorization` header: a secret of the client's, those for the host first; else the URL's own user and password.
async fn header(shared: &Shared, spec: &GitSpec, cx: &SourceContext) -> Result<Option<String>, SourceError> {
    let names = [(&spec.header_secret, false), (&spec.token_secret, true)];
    let hosts = [format!(".{}", spec.remote.host), String::new()];
    for suffix in &hosts {
        for (name, is_token) in names {
            let Some(name) = name else { continue };
            let name = format!("{name}{suffix}");
            let found = secret(shared, cx, &name).await.map_err(SourceError::session(&spec.origin()))?;
            let Some(secret) = found else { continue };
            let refused = || SourceError::Refused {
                origin: spec.origin(),
                why: format!("secret {name} cannot be sent as a header"),
            };
            let text = std::str::from_utf8(secret.expose().trim_ascii()).map_err(|_| refused())?;
            if text.chars().any(char::is_control) {
                return Err(refused());
            }
            return Ok(Some(if is_token { basic("x-access-token", text) } else { text.to_owned() }));
        }
    }
    Ok(spec.remote.login.as_ref().map(|(user, password)| basic(user, password)))
}

fn basic(user: &str, password: &str) -> String {
    use base64::Engine as _;
    let encoded = base64::engine::general_purpose::STANDARD.encode(format!("{user}:{password}"));
    format!("basic {encoded}")
}

/// Which URLs the credentials are for: the remote, and with github.com all that is there, so that private submodules work (as in BuildKit).
fn scope(remote: &Remote) -> &str {
    ["https://github.com/", "https://www.github.com/"]
        .into_iter()
        .find(|prefix| remote.url.starts_with(prefix))
        .unwrap_or(&remote.url)
}
