//! Registry credentials in headers and bodies.

use std::collections::BTreeMap;

use base64::{Engine as _, engine::general_purpose};
use serde::{Deserialize, Serialize};

use crate::ApiTypeError;

/// Credentials for one registry, as `X-Registry-Auth` and `POST /auth` carry them.
#[derive(Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct AuthConfig {
    /// User name.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub username: String,
    /// Password.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub password: String,
    /// `user:password` in base64, as `config.json` has it; used when the two above are empty.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub auth: String,
    /// The registry.
    #[serde(rename = "serveraddress", skip_serializing_if = "String::is_empty")]
    pub server_address: String,
    /// An OAuth2 refresh token.
    #[serde(rename = "identitytoken", skip_serializing_if = "String::is_empty")]
    pub identity_token: String,
    /// A bearer token.
    #[serde(rename = "registrytoken", skip_serializing_if = "String::is_empty")]
    pub registry_token: String,
}

impl std::fmt::Debug for AuthConfig {
    /// Secrets stay out of logs.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("AuthConfig")
            .field("username", &self.username)
            .field("server_address", &self.server_address)
            .finish_non_exhaustive()
    }
}

impl AuthConfig {
    /// Whether it holds nothing to log in with.
    pub fn is_empty(&self) -> bool {
        self.username.is_empty()
            && self.password.is_empty()
            && self.auth.is_empty()
            && self.identity_token.is_empty()
            && self.registry_token.is_empty()
    }

    /// User and password, from the fields of that name or from `auth`.
    pub fn basic(&self) -> Option<(String, String)> {
        if !self.username.is_empty() || !self.password.is_empty() {
            return Some((self.username.clone(), self.password.clone()));
        }
        let decoded = general_purpose::STANDARD.decode(&self.auth).ok()?;
        let text = String::from_utf8(decoded).ok()?;
        let (user, password) = text.trim_end_matches('\0').split_once(':')?;
        Some((user.to_owned(), password.to_owned()))
    }

    /// Reads an `X-Registry-Auth` header: base64url JSON. Empty is no credentials.
    pub fn from_header(header: &str) -> Result<AuthConfig, ApiTypeError> {
        if header.is_empty() {
            return Ok(AuthConfig::default());
        }
        let bytes = base64url(header)
            .ok_or_else(|| ApiTypeError::Auth("must be a valid base64url-encoded string".to_owned()))?;
        Self::from_json(&bytes)
    }

    /// Reads the JSON document, as `POST /auth` sends it.
    pub fn from_json(bytes: &[u8]) -> Result<AuthConfig, ApiTypeError> {
        // The parser's own message may quote the document, which holds a password.
        serde_json::from_slice::<Option<AuthConfig>>(bytes)
            .map(Option::unwrap_or_default)
            .map_err(|error| ApiTypeError::Auth(format!("invalid JSON at column {}", error.column())))
    }
}

/// Reads an `X-Registry-Config` header: base64url JSON of registry → credentials. As in Moby, what cannot be read is no
/// credentials: the build then fails at the registry, with a clear message, if it needed them.
pub fn decode_auth_configs(header: &str) -> BTreeMap<String, AuthConfig> {
    base64url(header).and_then(|bytes| serde_json::from_slice(&bytes).ok()).unwrap_or_default()
}

/// Clients disagree on alphabet and padding.
fn base64url(text: &str) -> Option<Vec<u8>> {
    let text: String = text
        .trim()
        .trim_end_matches('=')
        .chars()
        .map(|c| match c {
            '+' => '-',
            '/' => '_',
            other => other,
        })
        .collect();
    general_purpose::URL_SAFE_NO_PAD.decode(text).ok()
}

/// The answer to `POST /auth`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct AuthResponse {
    /// A token to use in place of the password; may be empty.
    pub identity_token: String,
    /// What happened.
    pub status: String,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers_are_read_in_either_alphabet_and_padding() {
        let json = br#"{"username":"u","password":"p?>","serveraddress":"r:5000"}"#;
        let standard = general_purpose::STANDARD.encode(json);
        let url = general_purpose::URL_SAFE.encode(json);
        for header in [&standard, &url, url.trim_end_matches('=')] {
            let auth = AuthConfig::from_header(header).unwrap();
            assert_eq!(auth.basic(), Some(("u".to_owned(), "p?>".to_owned())));
        }
        assert!(AuthConfig::from_header("").unwrap().is_empty());
        assert!(AuthConfig::from_header("e30=").unwrap().is_empty());
        assert!(AuthConfig::from_header("!").is_err());
    }

    #[test]
    fn the_auth_field_stands_for_user_and_password() {
        let auth = AuthConfig { auth: general_purpose::STANDARD.encode("u:p:q"), ..AuthConfig::default() };
        assert_eq!(auth.basic(), Some(("u".to_owned(), "p:q".to_owned())));
    }

    #[test]
    fn secrets_are_not_in_debug_output_nor_in_errors() {
        let auth = AuthConfig { password: "hunter2".to_owned(), ..AuthConfig::default() };
        assert!(!format!("{auth:?}").contains("hunter2"));
        let error = AuthConfig::from_json(br#"{"password":"hunter2","username":{}}"#).unwrap_err();
        assert!(!error.to_string().contains("hunter2"));
    }

    #[test]
    fn unreadable_registry_configs_are_no_credentials() {
        let header = general_purpose::URL_SAFE.encode(r#"{"r:5000":{"username":"u","password":"p"}}"#);
        assert_eq!(decode_auth_configs(&header)["r:5000"].username, "u");
        assert!(decode_auth_configs("%%%").is_empty());
    }
}
