//! Credentials that came with a request.

use lapstrake_api_types::AuthConfig;
use lapstrake_layerstore_registry::{Credentials, Secret, StaticCredentials};

/// What Docker's clients call Docker Hub.
const DOCKER_HUB: &str = "https://index.docker.io/v1/";

/// Credentials by registry, as a build's headers carry them.
pub(super) fn by_registry<'a>(
    auth: impl IntoIterator<Item = (&'a str, &'a AuthConfig)>,
) -> StaticCredentials {
    auth.into_iter().fold(StaticCredentials::new(), |all, (registry, auth)| {
        let registry = if registry.is_empty() { DOCKER_HUB } else { registry };
        match credentials(auth) {
            Some(credentials) => all.with(registry, credentials),
            None => all,
        }
    })
}

fn credentials(auth: &AuthConfig) -> Option<Credentials> {
    if !auth.registry_token.is_empty() {
        return Some(Credentials::RegistryToken(Secret::new(auth.registry_token.clone())));
    }
    if !auth.identity_token.is_empty() {
        return Some(Credentials::IdentityToken(Secret::new(auth.identity_token.clone())));
    }
    let (username, password) = auth.basic()?;
    Credentials::from_pair(&username, &password)
}

#[cfg(test)]
mod tests {
    use lapstrake_layerstore_registry::CredentialSource as _;

    use super::*;

    #[tokio::test]
    async fn tokens_go_before_passwords_and_no_registry_means_docker_hub() {
        let password =
            AuthConfig { username: "u".to_owned(), password: "p".to_owned(), ..AuthConfig::default() };
        let token = AuthConfig { identity_token: "t".to_owned(), ..password.clone() };
        let empty = AuthConfig::default();
        let source = by_registry([("", &password), ("r.example:5000", &token), ("none.example", &empty)]);
        let hub = source.credentials("registry-1.docker.io").await.unwrap();
        assert_eq!(hub, Credentials::from_pair("u", "p"));
        let found = source.credentials("r.example:5000").await.unwrap();
        assert_eq!(found, Some(Credentials::IdentityToken(Secret::new("t"))));
        assert_eq!(source.credentials("none.example").await.unwrap(), None);
    }
}
