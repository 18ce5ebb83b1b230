//! Certificates for servers and clients of tests, by the `openssl` program.
#![allow(clippy::unwrap_used, reason = "of tests: they fail by panicking")]

use std::{
    path::{Path, PathBuf},
    process::Command,
};

/// A certificate and its key, in files: `<name>.pem` and `<name>-key.pem`.
#[derive(Debug, Clone)]
pub struct Certificate {
    /// The certificate.
    pub certificate: PathBuf,
    /// Its key.
    pub key: PathBuf,
}

impl Certificate {
    /// Of an authority, which nobody vouches for.
    pub fn authority(dir: &Path, name: &str) -> Self {
        Self::make(dir, name, &["-addext", "basicConstraints=critical,CA:TRUE"])
    }

    /// Of a server or client at `host` (`IP:…` or `DNS:…`), which nobody vouches for.
    pub fn alone(dir: &Path, name: &str, host: &str) -> Self {
        Self::leaf(dir, name, host, &[])
    }

    /// Of a server or client at `host`, which this authority vouches for.
    pub fn vouch(&self, dir: &Path, name: &str, host: &str) -> Self {
        Self::leaf(dir, name, host, &["-CA", text(&self.certificate), "-CAkey", text(&self.key)])
    }

    fn leaf(dir: &Path, name: &str, host: &str, by: &[&str]) -> Self {
        let host = format!("subjectAltName={host}");
        let own = ["-addext", &host, "-addext", "basicConstraints=critical,CA:FALSE"];
        Self::make(dir, name, &[by, &own].concat())
    }

    fn make(dir: &Path, name: &str, more: &[&str]) -> Self {
        let made =
            Self { certificate: dir.join(format!("{name}.pem")), key: dir.join(format!("{name}-key.pem")) };
        let output = Command::new("openssl")
            .args([
                "req",
                "-x509",
                "-newkey",
                "ec",
                "-pkeyopt",
                "ec_paramgen_curve:P-256",
                "-nodes",
                "-days",
                "2",
            ])
            .args([
                "-subj",
                &format!("/CN={name}"),
                "-out",
                text(&made.certificate),
                "-keyout",
                text(&made.key),
            ])
            .args(more)
            .output()
            .expect("openssl is installed (Debian package openssl)");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        made
    }
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}
