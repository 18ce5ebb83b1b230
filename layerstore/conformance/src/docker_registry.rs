//! Debian's docker-registry on loopback: the real thing, for whoever talks to registries.
#![allow(clippy::unwrap_used, reason = "of tests: they fail by panicking")]

use std::{
    fs::{self, File},
    io::{self, BufRead, BufReader, Write},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
};

use lapstrake_layerstore_oci::Reference;
use tempfile::TempDir;

use crate::certificates::Certificate;

/// Whom a registry [with users](Registry::with_users) knows.
pub const USER: &str = "tester";
/// The password of [`USER`].
pub const PASSWORD: &str = "s3cret";
/// The same as bcrypt, the only form that the registry takes.
const PASSWORD_HASH: &str = "$2y$05$abcdefghijklmnopqrstuuLK7U1u6pVRmL7L1BBM2aS35PSZnDXlK";

/// Names of certificates.
const SERVER: &str = "server";
const CLIENT: &str = "client";
const LOOPBACK: &str = "IP:127.0.0.1";

/// A running registry with an empty store. Ended when dropped.
#[derive(Debug)]
pub struct Registry {
    child: Child,
    port: u16,
    dir: TempDir,
}

impl Registry {
    /// Starts one that everybody may use.
    pub fn start() -> Registry {
        Registry::launch(|_| String::new())
    }

    /// Starts one that only [`USER`] may use.
    pub fn with_users() -> Registry {
        Registry::launch(|dir| {
            let file = dir.join("htpasswd");
            fs::write(&file, format!("{USER}:{PASSWORD_HASH}\n")).unwrap();
            format!("auth: {{htpasswd: {{realm: tests, path: {}}}}}\n", file.display())
        })
    }

    /// Starts one that speaks TLS, with [a certificate](Registry::certificate) that nobody vouches for.
    pub fn with_tls() -> Registry {
        Registry::launch(|dir| {
            let Certificate { certificate, key } = Certificate::alone(dir, SERVER, LOOPBACK);
            // Inside the `http` table that the configuration ends with.
            format!("  tls: {{certificate: {}, key: {}}}\n", certificate.display(), key.display())
        })
    }

    /// Starts one that speaks TLS with those only who have [the client's certificate](Registry::client_certificate).
    pub fn with_client_certificates() -> Registry {
        Registry::launch(|dir| {
            let Certificate { certificate, key } = Certificate::alone(dir, SERVER, LOOPBACK);
            let client = Certificate::alone(dir, CLIENT, LOOPBACK).certificate;
            format!(
                "  tls: {{certificate: {}, key: {}, clientcas: [{}]}}\n",
                certificate.display(),
                key.display(),
                client.display()
            )
        })
    }

    /// Starts a registry on a port of its choice, which its log tells.
    fn launch(more_settings: impl Fn(&Path) -> String) -> Registry {
        let dir = tempfile::Builder::new().prefix("lapstrake-registry-").tempdir().unwrap();
        let path = |name: &str| dir.path().join(name);
        let settings = format!(
            "version: 0.1\nlog: {{level: info}}\nstorage:\n  filesystem: {{rootdirectory: {}}}\n  delete: {{enabled: true}}\nhttp:\n  addr: 127.0.0.1:0\n  secret: test\n{}",
            path("data").display(),
            more_settings(dir.path())
        );
        fs::write(path("config.yml"), settings).unwrap();
        // Two write to it: each line goes to its end.
        let mut log = File::options().create(true).append(true).open(path("log")).unwrap();
        let mut child = Command::new("docker-registry")
            .arg("serve")
            .arg(path("config.yml"))
            .env_clear()
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(Stdio::piped())
            .spawn()
            .expect("docker-registry is installed (Debian package docker-registry)");
        let mut told = BufReader::new(child.stderr.take().unwrap());
        let mut line = String::new();
        let port = loop {
            line.clear();
            assert!(told.read_line(&mut line).unwrap() > 0, "docker-registry ended");
            log.write_all(line.as_bytes()).unwrap();
            if let Some((_, rest)) = line.split_once("listening on 127.0.0.1:") {
                break rest.split(['"', ',']).next().unwrap().parse().unwrap();
            }
        };
        // What it says must go on being read, or it would wait for it.
        std::thread::spawn(move || io::copy(&mut told, &mut log));
        Registry { child, port, dir }
    }

    /// `127.0.0.1:<port>`
    pub fn host(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    /// `localhost:<port>/<name>`
    pub fn image(&self, name: &str) -> String {
        format!("localhost:{}/{name}", self.port)
    }

    /// `127.0.0.1:<port>/<name>`
    pub fn reference(&self, name: &str) -> Reference {
        Reference::parse(&format!("{}/{name}", self.host())).unwrap()
    }

    /// The registry's own directory of its blobs and repositories.
    pub fn storage(&self) -> PathBuf {
        self.dir.path().join("data")
    }

    /// The certificate of a registry [with TLS](Registry::with_tls).
    pub fn certificate(&self) -> PathBuf {
        self.dir.path().join(format!("{SERVER}.pem"))
    }

    /// The certificate, and its key, that a registry [with client certificates](Registry::with_client_certificates) wants.
    pub fn client_certificate(&self) -> (PathBuf, PathBuf) {
        let path = |end: &str| self.dir.path().join(format!("{CLIENT}{end}"));
        (path(".pem"), path("-key.pem"))
    }

    /// What the registry logged: each request that it has answered, among others.
    pub fn log(&self) -> String {
        fs::read_to_string(self.dir.path().join("log")).unwrap()
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        // It may have ended by itself, which the test will have noticed.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
