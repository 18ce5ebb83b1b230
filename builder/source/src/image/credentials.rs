//! Logins: the client's, through its session, and then what came with the request.

use std::sync::Arc;

use futures::future::BoxFuture;
use lapstrake_layerstore_registry::{
    CredentialSource, Credentials, CredentialsError, Secret, Token, TokenRequest,
};
use lapstrake_session::{self as session, SessionCaller, SessionId, Sessions, Wait};

use crate::SourceContext;

const FETCH_TOKEN: &str = "/moby.filesync.v1.Auth/FetchToken";
const CREDENTIALS: &str = "/moby.filesync.v1.Auth/Credentials";
/// What a token is good for when nobody says: the distribution specification's 60 seconds.
const TOKEN_SECONDS: u64 = 60;

/// The logins of those who wait for a source, asked in order.
pub(crate) struct Logins {
    sessions: Sessions,
    ids: Vec<SessionId>,
    others: Vec<Arc<dyn CredentialSource>>,
}

impl Logins {
    pub(crate) fn new(sessions: Sessions, cx: &SourceContext) -> Self {
        Self { sessions, ids: cx.sessions.clone(), others: cx.credentials.clone() }
    }

    /// The sessions that offer `method`. One that has gone is no reason to fail: another may answer, or none be needed.
    async fn offering(&self, method: &str) -> Vec<SessionCaller> {
        let mut found = Vec::new();
        for id in &self.ids {
            match self.sessions.get(id.as_str(), Wait::default()).await {
                Ok(caller) if caller.supports(method) => found.push(caller),
                Ok(_) => {}
                Err(error) => tracing::debug!(%error, "no credentials from a session"),
            }
        }
        found
    }
}

fn failed(error: &session::Error) -> CredentialsError {
    CredentialsError(error.to_string())
}

impl CredentialSource for Logins {
    fn credentials<'a>(
        &'a self,
        host: &'a str,
    ) -> BoxFuture<'a, Result<Option<Credentials>, CredentialsError>> {
        Box::pin(async move {
            let mut failure = None;
            for caller in self.offering(CREDENTIALS).await {
                match caller.credentials(host).await {
                    Ok(Some(login)) => {
                        if let Some(login) = Credentials::from_pair(&login.username, &login.secret) {
                            return Ok(Some(login));
                        }
                    }
                    Ok(None) => {}
                    Err(error) => failure = Some(failed(&error)),
                }
            }
            for source in &self.others {
                if let Some(login) = source.credentials(host).await? {
                    return Ok(Some(login));
                }
            }
            // A credential helper that fails must not silently turn its user into a stranger.
            failure.map_or(Ok(None), Err)
        })
    }

    fn token<'a>(
        &'a self,
        request: &'a TokenRequest,
    ) -> BoxFuture<'a, Result<Option<Token>, CredentialsError>> {
        Box::pin(async move {
            for caller in self.offering(FETCH_TOKEN).await {
                let wanted = session::TokenRequest {
                    client_id: "lapstrake".to_owned(),
                    host: request.host.clone(),
                    realm: request.realm.clone(),
                    service: request.service.clone(),
                    scopes: request.scopes.clone(),
                };
                match caller.fetch_token(wanted).await {
                    Ok(token) if !token.token.is_empty() => {
                        let seconds = u64::try_from(token.expires_in).unwrap_or(0);
                        return Ok(Some(Token {
                            token: Secret::new(token.token),
                            expires_in: if seconds == 0 { TOKEN_SECONDS } else { seconds },
                        }));
                    }
                    Ok(_) => {}
                    // The registry client then asks for itself, with what `credentials` gives: its words are the registry's own.
                    Err(error) => tracing::debug!(%error, "the client fetched no token"),
                }
            }
            for source in &self.others {
                if let Some(token) = source.token(request).await? {
                    return Ok(Some(token));
                }
            }
            Ok(None)
        })
    }
}
