//! Addresses that the daemon listens on, and that commands find it at.

use std::{fmt, path::PathBuf, str::FromStr};

use crate::rootless;

/// One `--host`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Host {
    /// `unix:///path`
    Unix(PathBuf),
    /// `tcp://address:port`
    Tcp(String),
    /// `fd://`: every socket that systemd passes; `fd://3` is one of them by its number.
    Inherited(Option<u32>),
}

/// The port of `tcp://address` without one, as Docker's: with TLS, and without.
const TLS_PORT: u16 = 2376;
const PLAIN_PORT: u16 = 2375;

impl Host {
    /// Where a daemon listens, and is looked for, when nothing is said.
    pub(crate) fn default_socket() -> Self {
        let runtime = std::env::var_os("XDG_RUNTIME_DIR").filter(|dir| !dir.is_empty());
        Self::Unix(match runtime {
            Some(dir) if rootless::is_ordinary_user() => PathBuf::from(dir).join("lapstrake/lapstrake.sock"),
            _ => PathBuf::from("/run/lapstrake/lapstrake.sock"),
        })
    }

    /// The address of a TCP host with its port.
    pub(crate) fn tcp_address(address: &str, is_tls: bool) -> String {
        let has_port = match address.rsplit_once(':') {
            Some((_, port)) => !port.is_empty() && port.bytes().all(|byte| byte.is_ascii_digit()),
            None => false,
        };
        let port = if is_tls { TLS_PORT } else { PLAIN_PORT };
        match address.trim_end_matches(':') {
            // As dockerd: an address that is not said is this machine's own, never all of them.
            "" => format!("127.0.0.1:{port}"),
            _ if has_port && address.starts_with(':') => format!("127.0.0.1{address}"),
            _ if has_port => address.to_owned(),
            address => format!("{address}:{port}"),
        }
    }
}

impl FromStr for Host {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (scheme, rest) =
            text.split_once("://").ok_or("begins with none of unix://, tcp:// and fd://".to_owned())?;
        match scheme {
            "unix" if rest.starts_with('/') => Ok(Self::Unix(PathBuf::from(rest))),
            "unix" => Err("the socket's path is not absolute".to_owned()),
            "tcp" if rest.trim_end_matches('/').contains('/') => Err("an address has no path".to_owned()),
            "tcp" => Ok(Self::Tcp(rest.trim_end_matches('/').to_owned())),
            "fd" if rest.is_empty() || rest == "*" => Ok(Self::Inherited(None)),
            "fd" => match rest.parse() {
                Ok(number) if number >= 3 => Ok(Self::Inherited(Some(number))),
                _ => Err("the number of a descriptor that systemd passes is at least 3".to_owned()),
            },
            other => Err(format!("{other}:// is none of unix://, tcp:// and fd://")),
        }
    }
}

impl fmt::Display for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unix(path) => write!(f, "unix://{}", path.display()),
            Self::Tcp(address) => write!(f, "tcp://{address}"),
            Self::Inherited(None) => f.write_str("fd://"),
            Self::Inherited(Some(number)) => write!(f, "fd://{number}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_are_written_as_they_are_read() {
        for text in ["unix:///run/x.sock", "tcp://127.0.0.1:2376", "tcp://[::1]:80", "fd://", "fd://4"] {
            assert_eq!(text.parse::<Host>().unwrap().to_string(), text);
        }
    }

    #[test]
    fn wrong_hosts_say_why() {
        for (text, why) in [
            ("/run/x.sock", "begins with none of"),
            ("unix://x.sock", "not absolute"),
            ("http://x", "http:// is none of"),
            ("fd://2", "at least 3"),
            ("fd://x", "at least 3"),
            ("tcp://h:1/v1", "has no path"),
        ] {
            let error = text.parse::<Host>().unwrap_err();
            assert!(error.contains(why), "{text}: {error}");
        }
    }

    #[test]
    fn ports_and_addresses_that_are_not_said_are_dockers() {
        for (address, tls, expected) in [
            ("", true, "127.0.0.1:2376"),
            (":1234", true, "127.0.0.1:1234"),
            ("10.0.0.1", true, "10.0.0.1:2376"),
            ("10.0.0.1", false, "10.0.0.1:2375"),
            ("[::1]:99", false, "[::1]:99"),
            ("[::1]", false, "[::1]:2375"),
        ] {
            assert_eq!(Host::tcp_address(address, tls), expected);
        }
    }
}
