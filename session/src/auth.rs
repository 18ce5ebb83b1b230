//! Registry credentials and tokens that only the client has.

use std::fmt;

use lapstrake_api_proto::auth::{
    CredentialsRequest, FetchTokenRequest, GetTokenAuthorityRequest, VerifyTokenAuthorityRequest,
    auth_client::AuthClient,
};
use tonic::Code;

use crate::{
    Error, SessionCaller,
    channel::{self, SessionChannel},
};

const CREDENTIALS: &str = "/moby.filesync.v1.Auth/Credentials";
const FETCH_TOKEN: &str = "/moby.filesync.v1.Auth/FetchToken";
const GET_AUTHORITY: &str = "/moby.filesync.v1.Auth/GetTokenAuthority";
const VERIFY_AUTHORITY: &str = "/moby.filesync.v1.Auth/VerifyTokenAuthority";

/// A login at a registry. `Debug` does not show the secret.
#[derive(Clone, PartialEq, Eq)]
pub struct Credentials {
    /// User name; empty when `secret` is an identity token.
    pub username: String,
    /// Password, or identity token.
    pub secret: String,
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Credentials")
            .field("username", &self.username)
            .field("secret", &"<redacted>")
            .finish()
    }
}

/// What a token is asked for; the client fetches it from the registry's token server.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct TokenRequest {
    /// OAuth client id.
    pub client_id: String,
    /// The registry.
    pub host: String,
    /// The token server, from the registry's challenge.
    pub realm: String,
    /// From the challenge.
    pub service: String,
    /// `repository:name:pull` and the like.
    pub scopes: Vec<String>,
}

/// A bearer token. `Debug` does not show it.
#[derive(Clone, PartialEq, Eq)]
pub struct Token {
    /// The token.
    pub token: String,
    /// Seconds of validity.
    pub expires_in: i64,
    /// Unix time in seconds; 0 when the server did not say.
    pub issued_at: i64,
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Token")
            .field("token", &"<redacted>")
            .field("expires_in", &self.expires_in)
            .field("issued_at", &self.issued_at)
            .finish()
    }
}

/// All four calls are cancel-safe by drop, and give up after a minute ([`Error::TimedOut`]).
impl SessionCaller {
    /// The client's login at `host`; `None` when it has none or does not share logins.
    ///
    /// # Errors
    /// [`Error::Call`], [`Error::Closed`], [`Error::TimedOut`].
    pub async fn credentials(&self, host: &str) -> Result<Option<Credentials>, Error> {
        let request = CredentialsRequest { host: host.to_owned() };
        let mut client = self.auth();
        let answer = self.timed(CREDENTIALS, client.credentials(request)).await;
        let Some(answer) = absent_when(answer, &[Code::Unimplemented])? else { return Ok(None) };
        if answer.username.is_empty() && answer.secret.is_empty() {
            return Ok(None);
        }
        Ok(Some(Credentials { username: answer.username, secret: answer.secret }))
    }

    /// Has the client fetch a token, so that the daemon never sees the password.
    ///
    /// # Errors
    /// [`Error::Unsupported`] by clients that cannot; [`Error::Call`], [`Error::Closed`], [`Error::TimedOut`].
    pub async fn fetch_token(&self, request: TokenRequest) -> Result<Token, Error> {
        let TokenRequest { client_id, host, realm, service, scopes } = request;
        let request = FetchTokenRequest { client_id, host, realm, service, scopes };
        let mut client = self.auth();
        let answer = self.timed(FETCH_TOKEN, client.fetch_token(request)).await?;
        Ok(Token { token: answer.token, expires_in: answer.expires_in, issued_at: answer.issued_at })
    }

    /// The ed25519 key with which the client proves that it is the one that fetched tokens for `host` before; `None` when it has no
    /// such key.
    ///
    /// # Errors
    /// [`Error::BadAnswer`] for a key of the wrong length; [`Error::Call`], [`Error::Closed`], [`Error::TimedOut`].
    pub async fn token_authority(&self, host: &str, salt: &[u8]) -> Result<Option<[u8; 32]>, Error> {
        let request = GetTokenAuthorityRequest { host: host.to_owned(), salt: salt.to_vec() };
        let mut client = self.auth();
        let answer = self.timed(GET_AUTHORITY, client.get_token_authority(request)).await;
        let Some(answer) = absent_when(answer, &[Code::Unimplemented, Code::Unavailable])? else {
            return Ok(None);
        };
        answer.public_key.as_slice().try_into().map(Some).map_err(|_| Error::BadAnswer {
            id: self.id().clone(),
            method: GET_AUTHORITY,
            problem: "public key is not 32 bytes long",
        })
    }

    /// `payload` signed by the client's key for `host` (NaCl `sign`: signature, then message); the caller verifies it. `None` when the
    /// client has no such key.
    ///
    /// # Errors
    /// [`Error::Call`], [`Error::Closed`], [`Error::TimedOut`].
    pub async fn verify_token_authority(
        &self,
        host: &str,
        payload: &[u8],
        salt: &[u8],
    ) -> Result<Option<Vec<u8>>, Error> {
        let request = VerifyTokenAuthorityRequest {
            host: host.to_owned(),
            payload: payload.to_vec(),
            salt: salt.to_vec(),
        };
        let mut client = self.auth();
        let answer = self.timed(VERIFY_AUTHORITY, client.verify_token_authority(request)).await;
        Ok(absent_when(answer, &[Code::Unimplemented])?.map(|a| a.signed))
    }

    fn auth(&self) -> AuthClient<SessionChannel> {
        AuthClient::with_origin(self.channel(), channel::origin())
    }
}

/// `None` instead of an error with one of `codes`.
fn absent_when<T>(answer: Result<T, Error>, codes: &[Code]) -> Result<Option<T>, Error> {
    match answer {
        Ok(value) => Ok(Some(value)),
        Err(Error::Unsupported { .. }) if codes.contains(&Code::Unimplemented) => Ok(None),
        Err(Error::Call { status, .. }) if codes.contains(&status.code()) => Ok(None),
        Err(error) => Err(error),
    }
}
