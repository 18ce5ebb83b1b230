//! What gives access to a remote: the client's secrets and ssh agent.

use std::{path::Path, sync::Arc};

use lapstrake_session::{Error, Secret, SessionCaller, SshAgent, SshSocket, Wait};
use parking_lot::Mutex;
use reqwest::header::{AUTHORIZATION, HeaderValue, LOCATION};
use url::Url;

use super::{
    GitSpec,
    program::GitSsh,
    url::{Remote, Transport},
};
use crate::{SourceContext, SourceError, sources::Shared};

/// Access to one remote, while this lives.
#[derive(Default)]
pub(super) struct Access {
    login: Option<Login>,
    /// Where servers of the login's URLs redirect to: from, to.
    moved: Mutex<Vec<(String, String)>>,
    pub(super) ssh: GitSsh,
    /// What takes the remote's place: the URL of a repository of this machine.
    pub(super) instead: Option<String>,
    _agent: Option<SshAgent>,
    _dir: Option<tempfile::TempDir>,
}

/// An `Authorization` header and the URLs that it is for: those that begin like this.
struct Login {
    scope: String,
    header: String,
    client: Result<reqwest::Client, String>,
}

impl Access {
    /// Nothing but a repository of this machine, which nobody gives access to.
    pub(super) fn to_repository_here(url: String) -> Self {
        Self { instead: Some(url), ..Self::default() }
    }

    /// Git configuration, with credentials in it.
    ///
    /// Git would send the header on to wherever the server redirects to. So it does not follow by itself where it has a header to send:
    /// [`Access::follow`] finds out where to, and the header is sent there only if that is the same server.
    pub(super) fn config(&self) -> Vec<(String, String)> {
        let Some(login) = &self.login else { return Vec::new() };
        let mut config = Vec::new();
        let mut lend = |url: &str| {
            config.push((format!("http.{url}.extraHeader"), format!("Authorization: {}", login.header)));
            config.push((format!("http.{url}.followRedirects"), "false".to_owned()));
        };
        lend(&login.scope);
        let moved = self.moved.lock();
        for (from, to) in moved.iter() {
            if is_same_server(from, to) {
                lend(to);
            }
        }
        config.extend(moved.iter().map(|(from, to)| (format!("url.{to}.insteadOf"), from.clone())));
        config
    }

    /// Finds out where a repository's server redirects to; `false` if that is not known.
    pub(super) async fn follow(&self, url: &str) -> bool {
        let Some(login) = &self.login else { return false };
        let Ok(client) = &login.client else { return false };
        // The URL is out of git's words, some of which are the server's.
        let is_lent = url.starts_with(&login.scope)
            || self.moved.lock().iter().any(|(from, to)| url.starts_with(to) && is_same_server(from, to));
        if !is_lent {
            return false;
        }
        // The first thing that git asks for (gitprotocol-http).
        const ASKED: &str = "/info/refs?service=git-upload-pack";
        let url = url.trim_end_matches('/');
        let Ok(mut header) = HeaderValue::from_str(&login.header) else { return false };
        header.set_sensitive(true);
        let asked = client.get(format!("{url}{ASKED}")).header(AUTHORIZATION, header).send().await;
        let to = asked.ok().and_then(|answer| {
            let to = answer.url().join(answer.headers().get(LOCATION)?.to_str().ok()?).ok()?;
            let is_web = matches!(to.scheme(), "http" | "https") && to.username().is_empty();
            to.as_str().strip_suffix(ASKED).filter(|_| is_web).map(str::to_owned)
        });
        let Some(to) = to else { return false };
        let mut moved = self.moved.lock();
        // By its first name: git looks a URL up once.
        let from =
            moved.iter().find(|(_, to)| to == url).map_or_else(|| url.to_owned(), |(from, _)| from.clone());
        moved.retain(|(known, _)| *known != from);
        moved.push((from, to));
        true
    }

    /// Asks the clients that wait.
    pub(super) async fn find(
        shared: &Arc<Shared>,
        spec: &GitSpec,
        cx: &SourceContext,
    ) -> Result<Self, SourceError> {
        let mut access = Self::default();
        match spec.remote.transport {
            Transport::Http | Transport::Https => {
                let found = header(shared, spec, cx).await?;
                let client = shared.http_once.clone();
                access.login = found.map(|(header, scope)| Login { scope, header, client });
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

/// The clients that wait and are there.
async fn callers(shared: &Shared, cx: &SourceContext) -> Vec<SessionCaller> {
    let mut callers = Vec::new();
    for session in &cx.sessions {
        callers.extend(shared.sessions.get(session.as_str(), Wait::default()).await);
    }
    callers
}

/// The secret `name` of the first client that has it. One that cannot give any has none: most repositories need none.
async fn secret(callers: &[SessionCaller], name: &str) -> Option<Secret> {
    for caller in callers {
        match caller.secret(name).await {
            Ok(secret) => return Some(secret),
            Err(Error::SecretNotFound { .. }) => {}
            Err(error) => tracing::debug!(name, %error, "no secret"),
        }
    }
    None
}

/// The `Authorization` header: a secret of the client's, those for the host first; else the URL's own user and password.
/// With it, the URLs that it is for.
async fn header(
    shared: &Shared,
    spec: &GitSpec,
    cx: &SourceContext,
) -> Result<Option<(String, String)>, SourceError> {
    let names = [(&spec.header_secret, false), (&spec.token_secret, true)];
    let callers = callers(shared, cx).await;
    let hosts = [format!(".{}", spec.remote.host), String::new()];
    for suffix in &hosts {
        for (name, is_token) in names {
            let Some(name) = name else { continue };
            let name = format!("{name}{suffix}");
            let Some(secret) = secret(&callers, &name).await else { continue };
            let refused = || SourceError::Refused {
                origin: spec.origin(),
                why: format!("secret {name} cannot be sent as a header"),
            };
            let text = std::str::from_utf8(secret.expose().trim_ascii()).map_err(|_| refused())?;
            if text.chars().any(char::is_control) {
                return Err(refused());
            }
            let header = if is_token { basic("x-access-token", text) } else { text.to_owned() };
            return Ok(Some((header, scope(&spec.remote).to_owned())));
        }
    }
    // For the whole server: a submodule that is relative to the remote is reached by the same user and password.
    let login = spec.remote.login.as_ref();
    Ok(login.map(|(user, password)| (basic(user, password), spec.remote.server().to_owned())))
}

/// Whether what is for one URL may be sent to the other: same scheme, host and port; or the same host by TLS, at last.
fn is_same_server(one: &str, other: &str) -> bool {
    let (Ok(one), Ok(other)) = (Url::parse(one), Url::parse(other)) else { return false };
    let place = |url: &Url| (url.scheme().to_owned(), url.port_or_known_default());
    let secured =
        place(&one) == ("http".to_owned(), Some(80)) && place(&other) == ("https".to_owned(), Some(443));
    one.host() == other.host() && (place(&one) == place(&other) || secured)
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

#[cfg(test)]
mod tests {
    use super::*;

    fn access(moved: &[(&str, &str)]) -> Access {
        let login = Login {
            scope: "https://h/r".to_owned(),
            header: "basic x".to_owned(),
            client: Err(String::new()),
        };
        let moved = moved.iter().map(|(from, to)| ((*from).to_owned(), (*to).to_owned())).collect();
        Access { login: Some(login), moved: Mutex::new(moved), ..Access::default() }
    }

    #[tokio::test]
    async fn no_header_is_sent_to_where_a_server_only_says_that_git_was() {
        let access = access(&[("https://h/t", "https://evil/t")]);
        for url in ["https://evil/r", "https://evil/t/x", "https://h/other", "https://h@evil/r"] {
            assert!(!access.follow(url).await, "{url}");
        }
    }

    #[test]
    fn a_header_goes_to_the_same_server_and_no_other() {
        let moved = access(&[("https://h/r", "https://h/s"), ("https://h/t", "https://evil/t")]).config();
        let lent: Vec<&str> = moved
            .iter()
            .filter_map(|(key, _)| key.strip_prefix("http.")?.strip_suffix(".extraHeader"))
            .collect();
        assert_eq!(lent, ["https://h/r", "https://h/s"]);
        let followed: Vec<_> = moved.iter().filter(|(key, _)| key.starts_with("url.")).cloned().collect();
        let renamed = |to: &str, from: &str| (format!("url.{to}.insteadOf"), from.to_owned());
        assert_eq!(
            followed,
            [renamed("https://h/s", "https://h/r"), renamed("https://evil/t", "https://h/t")]
        );
        for (one, other, same) in [
            ("https://h/a", "https://h/b", true),
            ("http://h/a", "https://h/b", true),
            ("https://h/a", "http://h/b", false),
            ("https://h/a", "https://h:8443/b", false),
            ("http://h:8080/a", "https://h/b", false),
            ("https://h/a", "https://sub.h/a", false),
            ("https://h/a", "https://h.evil/a", false),
        ] {
            assert_eq!(is_same_server(one, other), same, "{one} {other}");
        }
    }
}
