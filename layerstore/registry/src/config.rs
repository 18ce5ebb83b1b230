//! The registry part of `buildkitd.toml`, and which hosts a reference is asked of.

use std::{collections::BTreeMap, path::PathBuf};

use lapstrake_layerstore_oci::Reference;
use serde::Deserialize;

use crate::{RegistryError, error::Access};

/// Settings by registry host: the `[registry."…"]` tables of `buildkitd.toml`.
///
/// Deserialises from that table itself (so a daemon's config can hold it as its `registry` field);
/// [`RegistryConfig::from_toml`] reads a whole file and looks at nothing else.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(transparent)]
pub struct RegistryConfig {
    /// By host (and port), `docker.io` for Docker Hub.
    pub hosts: BTreeMap<String, HostConfig>,
}

/// One registry's settings.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct HostConfig {
    /// Hosts asked first when pulling, in order, each with an optional path under `/v2/`. A mirror's own TLS settings
    /// are those of its host's table.
    pub mirrors: Vec<String>,
    /// Speak plain HTTP.
    pub http: Option<bool>,
    /// Do not verify the certificate.
    pub insecure: Option<bool>,
    /// PEM files of certificate authorities to trust besides the system's.
    pub ca: Vec<PathBuf>,
    /// Client certificates.
    pub keypair: Vec<KeyPair>,
    /// Directories whose `*.crt` are such authorities and whose `*.cert` and `*.key` such certificates.
    pub tlsconfigdir: Vec<PathBuf>,
}

/// A client certificate.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct KeyPair {
    /// PEM file of the key.
    pub key: PathBuf,
    /// PEM file of the certificate.
    pub cert: PathBuf,
}

impl RegistryConfig {
    /// Reads the `registry` tables of a file like `buildkitd.toml`.
    pub fn from_toml(text: &str) -> Result<RegistryConfig, RegistryError> {
        #[derive(Deserialize)]
        struct File {
            #[serde(default)]
            registry: RegistryConfig,
        }
        let file: File = toml::from_str(text).map_err(|e| RegistryError::Config {
            host: String::new(),
            what: "configuration".to_owned(),
            reason: e.to_string(),
        })?;
        Ok(file.registry)
    }

    /// The hosts to ask for a reference, in order: mirrors (for pulling), then the registry.
    pub(crate) fn endpoints(&self, reference: &Reference, access: Access) -> Vec<Endpoint> {
        let domain = reference.domain();
        let mut out = Vec::new();
        if access == Access::Pull {
            let mirrors = self.hosts.get(domain).map(|h| h.mirrors.as_slice()).unwrap_or_default();
            for mirror in mirrors {
                let plain = mirror.starts_with("http://");
                let rest = mirror.split_once("://").map_or(mirror.as_str(), |(_, rest)| rest);
                let (host, path) = rest.split_once('/').unwrap_or((rest, ""));
                let path = path.trim_matches('/');
                let prefix = if path.is_empty() { "/v2".to_owned() } else { format!("/v2/{path}") };
                let scheme = if plain { SchemePolicy::Http } else { self.scheme(host, host) };
                out.push(Endpoint {
                    host: host.to_owned(),
                    config_key: host.to_owned(),
                    scheme,
                    prefix,
                    namespace: Some(domain.to_owned()),
                });
            }
        }
        out.push(self.registry_endpoint(domain));
        out
    }

    /// The registry itself.
    pub(crate) fn registry_endpoint(&self, domain: &str) -> Endpoint {
        let host = if domain == "docker.io" { "registry-1.docker.io" } else { domain };
        Endpoint {
            host: host.to_owned(),
            config_key: domain.to_owned(),
            scheme: self.scheme(host, domain),
            prefix: "/v2".to_owned(),
            namespace: None,
        }
    }

    fn scheme(&self, host: &str, key: &str) -> SchemePolicy {
        let config = self.hosts.get(key);
        let http = config.and_then(|c| c.http);
        let insecure = config.and_then(|c| c.insecure).unwrap_or(false);
        match (http, insecure) {
            (Some(true), false) => SchemePolicy::Http,
            (Some(true), true) => SchemePolicy::Fallback,
            (Some(false), _) => SchemePolicy::Https,
            // Docker counts loopback among its insecure registries: TLS without verification, then plain HTTP.
            (None, _) if is_loopback(host) => SchemePolicy::Fallback,
            (None, _) => SchemePolicy::Https,
        }
    }
}

/// How a host is spoken to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum SchemePolicy {
    /// TLS only.
    Https,
    /// Plain HTTP only.
    Http,
    /// TLS, and plain HTTP where nobody speaks TLS.
    Fallback,
}

/// A host that serves a repository.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Endpoint {
    /// Network host, with port.
    pub(crate) host: String,
    /// Whose settings apply.
    pub(crate) config_key: String,
    /// How to speak to it.
    pub(crate) scheme: SchemePolicy,
    /// `/v2`, with a mirror's path.
    pub(crate) prefix: String,
    /// For a mirror: the registry it stands for, sent as `ns` (as containerd does).
    pub(crate) namespace: Option<String>,
}

/// Whether a host (with or without port) is this machine.
pub(crate) fn is_loopback(host: &str) -> bool {
    let name = match host.strip_prefix('[') {
        Some(rest) => rest.split(']').next().unwrap_or(rest),
        None if host.matches(':').count() > 1 => host,
        None => host.split(':').next().unwrap_or(host),
    };
    name == "localhost" || name.parse::<std::net::IpAddr>().is_ok_and(|ip| ip.is_loopback())
}

#[cfg(test)]
mod tests {
    use super::*;

    const TOML: &str = r#"
        debug = true
        [worker.oci]
          enabled = true
        [registry."docker.io"]
          mirrors = ["mirror.local:5000", "harbor.example.org/proxy/hub/", "http://plain.example.org"]
        [registry."mirror.local:5000"]
          http = true
        [registry."tls.example.org"]
          insecure = true
          ca = ["/etc/ca.pem"]
          tlsconfigdir = ["/etc/d"]
          [[registry."tls.example.org".keypair]]
            key = "/k.pem"
            cert = "/c.pem"
    "#;

    fn urls(c: &RegistryConfig, r: &str, access: Access) -> Vec<(SchemePolicy, String)> {
        let r = Reference::parse(r).unwrap();
        c.endpoints(&r, access).into_iter().map(|e| (e.scheme, format!("{}{}", e.host, e.prefix))).collect()
    }

    #[test]
    fn mirrors_come_first_in_order_and_only_for_pulling() {
        let c = RegistryConfig::from_toml(TOML).unwrap();
        use SchemePolicy::{Http, Https};
        assert_eq!(
            urls(&c, "busybox", Access::Pull),
            [
                (Http, "mirror.local:5000/v2".to_owned()),
                (Https, "harbor.example.org/v2/proxy/hub".to_owned()),
                (Http, "plain.example.org/v2".to_owned()),
                (Https, "registry-1.docker.io/v2".to_owned()),
            ]
        );
        assert_eq!(urls(&c, "busybox", Access::Push), [(Https, "registry-1.docker.io/v2".to_owned())]);
        let first = &c.endpoints(&Reference::parse("busybox").unwrap(), Access::Pull)[0];
        assert_eq!(first.namespace.as_deref(), Some("docker.io"));
    }

    #[test]
    fn loopback_needs_no_configuration() {
        let c = RegistryConfig::default();
        for host in ["localhost:5000", "127.0.0.1", "127.3.2.1:80", "[::1]:5000"] {
            let e = c.registry_endpoint(host);
            assert_eq!(e.scheme, SchemePolicy::Fallback, "{host}");
        }
        for host in ["localhost.example.org", "10.0.0.1:5000", "docker.io", "[::2]"] {
            let e = c.registry_endpoint(host);
            assert_eq!(e.scheme, SchemePolicy::Https, "{host}");
        }
    }

    #[test]
    fn tls_settings_are_read_and_misspelt_ones_refused() {
        let c = RegistryConfig::from_toml(TOML).unwrap();
        let h = &c.hosts["tls.example.org"];
        assert_eq!((h.ca.len(), h.keypair[0].cert.to_str(), h.tlsconfigdir.len()), (1, Some("/c.pem"), 1));
        let e = RegistryConfig::from_toml("[registry.\"x\"]\nmirors = []").unwrap_err();
        assert!(e.to_string().contains("mirors"), "{e}");
    }
}
