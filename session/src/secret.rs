//! Build secrets.

use std::fmt;

use lapstrake_api_proto::secrets::{GetSecretRequest, secrets_client::SecretsClient};
use tonic::Code;

use crate::{Error, SessionCaller, channel};

const GET_SECRET: &str = "/moby.buildkit.secrets.v1.Secrets/GetSecret";

/// BuildKit's limit on a secret's size, in bytes.
pub const MAX_SECRET_SIZE: usize = 500 * 1024;

/// A secret's value. `Debug` does not show it; it is overwritten when dropped is *not* promised (the transport keeps copies).
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(Vec<u8>);

impl Secret {
    /// The value.
    pub fn expose(&self) -> &[u8] {
        &self.0
    }

    /// The value, taken.
    pub fn into_bytes(self) -> Vec<u8> {
        self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(<redacted>)")
    }
}

impl SessionCaller {
    /// The secret `id` (`--secret id=…`). Cancel-safe by drop.
    ///
    /// # Errors
    /// [`Error::SecretNotFound`] when the client has none of that id, or none at all; [`Error::SecretTooBig`] above
    /// [`MAX_SECRET_SIZE`]; [`Error::Call`], [`Error::Closed`], [`Error::TimedOut`].
    pub async fn secret(&self, id: &str) -> Result<Secret, Error> {
        let request = GetSecretRequest { id: id.to_owned(), ..Default::default() };
        let mut client = SecretsClient::with_origin(self.channel(), channel::origin());
        let data = match self.timed(GET_SECRET, client.get_secret(request)).await {
            Ok(answer) => answer.data,
            Err(Error::Unsupported { .. }) => return Err(Error::SecretNotFound { secret: id.to_owned() }),
            Err(Error::Call { status, .. }) if status.code() == Code::NotFound => {
                return Err(Error::SecretNotFound { secret: id.to_owned() });
            }
            Err(error) => return Err(error),
        };
        if data.len() > MAX_SECRET_SIZE {
            return Err(Error::SecretTooBig {
                secret: id.to_owned(),
                size: data.len(),
                limit: MAX_SECRET_SIZE,
            });
        }
        Ok(Secret(data))
    }
}
