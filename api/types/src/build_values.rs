//! Values of single `/build` parameters.

use std::{collections::BTreeMap, fmt, net::IpAddr};

use serde::Deserialize;

use crate::ApiTypeError;

/// Where a build's files come from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ContextSource {
    /// The request's body.
    Body,
    /// The client's session (`remote=client-session`).
    Session,
    /// Another request, `buildid=upload-request:<id>` (`remote=upload-request`).
    UploadRequest,
    /// A URL: git repository, archive or Dockerfile.
    Url(String),
}

impl ContextSource {
    pub(crate) fn parse(remote: &str) -> ContextSource {
        match remote {
            "" => ContextSource::Body,
            "client-session" => ContextSource::Session,
            "upload-request" => ContextSource::UploadRequest,
            url => ContextSource::Url(url.to_owned()),
        }
    }
}

/// The network of `RUN`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum NetworkMode {
    /// As the Dockerfile says; the daemon's default otherwise.
    #[default]
    Default,
    /// No network.
    None,
    /// The host's network.
    Host,
}

impl NetworkMode {
    pub(crate) fn parse(text: &str) -> Result<NetworkMode, ApiTypeError> {
        match text {
            "" | "default" => Ok(NetworkMode::Default),
            "none" => Ok(NetworkMode::None),
            "host" => Ok(NetworkMode::Host),
            // The default bridge is what classic clients mean by "default" too.
            "bridge" => Ok(NetworkMode::Default),
            other => Err(ApiTypeError::Unsupported(format!(
                "network mode {other:?} not supported: use default, none or host"
            ))),
        }
    }
}

/// One line for `/etc/hosts`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostEntry {
    /// The name.
    pub host: String,
    /// The address, or `host-gateway`.
    pub ip: String,
}

impl HostEntry {
    /// Reads `name:ip` (or the newer CLI's `name=ip`).
    pub fn parse(text: &str) -> Result<HostEntry, ApiTypeError> {
        let wrong = || ApiTypeError::Host(text.to_owned());
        let (host, ip) = match (text.find(':'), text.find('=')) {
            (Some(colon), Some(equals)) if equals < colon => text.split_at(equals),
            (Some(colon), _) => text.split_at(colon),
            (None, Some(equals)) => text.split_at(equals),
            (None, None) => return Err(wrong()),
        };
        let ip = ip[1..].trim_start_matches('[').trim_end_matches(']');
        if host.is_empty() || (ip != "host-gateway" && ip.parse::<std::net::IpAddr>().is_err()) {
            return Err(wrong());
        }
        Ok(HostEntry { host: host.to_owned(), ip: ip.to_owned() })
    }

    /// Whether it is the machine that the name stands for.
    pub fn is_host_gateway(&self) -> bool {
        self.ip == "host-gateway"
    }

    /// The entry as the Dockerfile frontend's `add-hosts` has it, `name=ip`; for `host-gateway` one with each of the
    /// gateway's addresses, as in Moby.
    pub fn frontend_hosts(&self, gateway: &HostGateway) -> Vec<String> {
        match self.ip.as_str() {
            "host-gateway" => gateway.0.iter().map(|ip| format!("{}={ip}", self.host)).collect(),
            ip => vec![format!("{}={ip}", self.host)],
        }
    }
}

/// What `host-gateway` means in a [`HostEntry`]: an address by which a step reaches the machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostGateway(Vec<IpAddr>);

impl From<IpAddr> for HostGateway {
    fn from(address: IpAddr) -> Self {
        Self(vec![address])
    }
}

impl HostGateway {
    /// Addresses of `--host-gateway-ip`; `None` when there are none.
    ///
    /// Errors: a sentence, when there are two of IPv4 or of IPv6, as in Moby.
    pub fn new(addresses: Vec<IpAddr>) -> Result<Option<Self>, &'static str> {
        let of_v4 = addresses.iter().filter(|ip| ip.is_ipv4()).count();
        if of_v4 > 1 || addresses.len() - of_v4 > 1 {
            return Err("at most one IPv4 and one IPv6 address");
        }
        Ok((!addresses.is_empty()).then_some(Self(addresses)))
    }

    /// The addresses; at least one.
    pub fn addresses(&self) -> &[IpAddr] {
        &self.0
    }
}

/// A limit of `setrlimit`. Whether it means something is known to who sets it.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct Ulimit {
    /// Such as `nofile`.
    pub name: String,
    /// The hard limit; -1 is unlimited.
    #[serde(default)]
    pub hard: i64,
    /// The soft limit; -1 is unlimited.
    #[serde(default)]
    pub soft: i64,
}

impl fmt::Display for Ulimit {
    /// `name=soft:hard`, as BuildKit's frontend takes it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}={}:{}", self.name, self.soft, self.hard)
    }
}

/// One entry of `outputs`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct BuildOutput {
    /// Such as `local`, `tar`, `image`, `moby`, `cacheonly`.
    #[serde(rename = "Type", default)]
    pub kind: String,
    /// Its options.
    #[serde(default, deserialize_with = "null_default")]
    pub attrs: BTreeMap<String, String>,
}

fn null_default<'de, D: serde::Deserializer<'de>, T: Default + Deserialize<'de>>(
    deserializer: D,
) -> Result<T, D::Error> {
    Ok(Option::<T>::deserialize(deserializer)?.unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_are_a_name_and_an_address() {
        let ok = |text: &str| {
            let entry = HostEntry::parse(text).unwrap();
            (entry.host, entry.ip)
        };
        assert_eq!(ok("a:1.2.3.4"), ("a".to_owned(), "1.2.3.4".to_owned()));
        assert_eq!(ok("a:::1"), ("a".to_owned(), "::1".to_owned()));
        assert_eq!(ok("a=[::1]"), ("a".to_owned(), "::1".to_owned()));
        assert_eq!(ok("a:host-gateway"), ("a".to_owned(), "host-gateway".to_owned()));
        for bad in ["", "a", ":1.2.3.4", "a:", "a:b"] {
            assert_eq!(HostEntry::parse(bad).unwrap_err().to_string(), format!("invalid host {bad}"));
        }
    }
}
