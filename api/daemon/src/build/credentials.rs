//! Credentials as docker's command line keeps them: `config.json`, and the helper programs that it names.

use std::{collections::BTreeMap, path::Path, process::Stdio, time::Duration};

use futures::future::BoxFuture;
use lapstrake_api_types::AuthConfig;
use lapstrake_layerstore_registry::{
    CredentialSource, Credentials, CredentialsError, Secret, StaticCredentials, is_docker_hub,
};
use serde::Deserialize;
use tokio::io::AsyncWriteExt as _;

use crate::error::ProgramError;

/// Longest time that a helper may take; some ask a person.
const HELPER_TIME: Duration = Duration::from_secs(60);
/// The key of Docker Hub in the file and for helpers.
const DOCKER_HUB: &str = "https://index.docker.io/v1/";

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct ConfigFile {
    auths: BTreeMap<String, AuthConfig>,
    #[serde(rename = "credsStore")]
    store: String,
    #[serde(rename = "credHelpers")]
    helpers: BTreeMap<String, String>,
}

/// The user's logins.
pub(super) struct DockerConfig {
    stored: StaticCredentials,
    store: String,
    helpers: BTreeMap<String, String>,
}

impl DockerConfig {
    /// Reads `$DOCKER_CONFIG/config.json`, by default of `~/.docker`. No file is no logins.
    pub(super) fn read() -> Result<Self, ProgramError> {
        let home = || Path::new(&std::env::var_os("HOME").unwrap_or_default()).join(".docker");
        let directory = std::env::var_os("DOCKER_CONFIG").filter(|dir| !dir.is_empty());
        let path = directory.map_or_else(home, Into::into).join("config.json");
        match std::fs::read(&path) {
            Ok(text) => Self::parse(&text).map_err(|error| {
                // The parser's own words may quote a password.
                ProgramError::setting(path.display().to_string(), format!("no JSON at line {}", error.line()))
            }),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                Ok(Self::parse(b"{}").expect("valid JSON"))
            }
            Err(source) => Err(ProgramError::file("read", path)(source)),
        }
    }

    fn parse(text: &[u8]) -> Result<Self, serde_json::Error> {
        let file: ConfigFile = serde_json::from_slice(text)?;
        let stored = file.auths.iter().fold(StaticCredentials::new(), |all, (host, auth)| {
            let credentials = if auth.identity_token.is_empty() {
                auth.basic().and_then(|(user, password)| Credentials::from_pair(&user, &password))
            } else {
                Some(Credentials::IdentityToken(Secret::new(auth.identity_token.clone())))
            };
            match credentials {
                Some(credentials) => all.with(host, credentials),
                None => all,
            }
        });
        Ok(Self { stored, store: file.store, helpers: file.helpers })
    }

    /// The helper that knows a host, and what the host is called there.
    fn helper<'a>(&'a self, host: &'a str) -> Option<(&'a str, &'a str)> {
        let key = if is_docker_hub(host) { DOCKER_HUB } else { host };
        let named = self.helpers.get(key).or_else(|| self.helpers.get(host)).map(String::as_str);
        named.or(Some(self.store.as_str())).filter(|name| !name.is_empty()).map(|name| (name, key))
    }
}

impl CredentialSource for DockerConfig {
    fn credentials<'a>(
        &'a self,
        host: &'a str,
    ) -> BoxFuture<'a, Result<Option<Credentials>, CredentialsError>> {
        Box::pin(async move {
            if let Some((name, key)) = self.helper(host)
                && let Some(found) = ask(name, key).await?
            {
                return Ok(Some(found));
            }
            self.stored.credentials(host).await
        })
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Answer {
    username: String,
    secret: String,
}

/// Asks `docker-credential-<name> get`.
async fn ask(name: &str, key: &str) -> Result<Option<Credentials>, CredentialsError> {
    let program = format!("docker-credential-{name}");
    let failed = |why: String| CredentialsError(format!("{program} get {key}: {why}"));
    let run = async {
        let mut child = tokio::process::Command::new(&program)
            .arg("get")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .kill_on_drop(true)
            .spawn()?;
        if let Some(mut input) = child.stdin.take() {
            input.write_all(key.as_bytes()).await?;
        }
        child.wait_with_output().await
    };
    let output = match tokio::time::timeout(HELPER_TIME, run).await {
        Ok(output) => output.map_err(|error: std::io::Error| failed(error.to_string()))?,
        Err(_) => return Err(failed(format!("no answer in {} s", HELPER_TIME.as_secs()))),
    };
    if !output.status.success() {
        // Helpers say on standard output that they know nothing.
        let said = String::from_utf8_lossy(&output.stdout);
        if said.trim() == "credentials not found in native keychain" {
            return Ok(None);
        }
        return Err(failed(output.status.to_string()));
    }
    let answer: Answer =
        serde_json::from_slice(&output.stdout).map_err(|_| failed("the answer is not JSON".to_owned()))?;
    Ok(Credentials::from_pair(&answer.username, &answer.secret))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn logins_of_the_file_are_found_by_host() {
        // user:password
        let text = br#"{"auths":{"https://index.docker.io/v1/":{"auth":"dXNlcjpwYXNzd29yZA=="},"r.example":{"identitytoken":"t"}}}"#;
        let config = DockerConfig::parse(text).unwrap();
        let hub = config.credentials("registry-1.docker.io").await.unwrap();
        assert_eq!(hub, Credentials::from_pair("user", "password"));
        let token = config.credentials("r.example").await.unwrap();
        assert_eq!(token, Some(Credentials::IdentityToken(Secret::new("t"))));
        assert_eq!(config.credentials("other.example").await.unwrap(), None);
    }

    #[test]
    fn a_hosts_own_helper_goes_before_the_store() {
        let text = br#"{"credsStore":"all","credHelpers":{"r.example":"one"}}"#;
        let config = DockerConfig::parse(text).unwrap();
        assert_eq!(config.helper("r.example"), Some(("one", "r.example")));
        assert_eq!(config.helper("registry-1.docker.io"), Some(("all", DOCKER_HUB)));
        assert_eq!(DockerConfig::parse(b"{}").unwrap().helper("r.example"), None);
    }

    #[tokio::test]
    async fn a_helper_that_is_not_there_is_an_error_that_names_it() {
        let text = br#"{"credsStore":"no-such-helper-here"}"#;
        let error = DockerConfig::parse(text).unwrap().credentials("r.example").await.unwrap_err();
        assert!(error.to_string().contains("docker-credential-no-such-helper-here"), "{error}");
    }
}
