//! gRPC over TCP with TLS, where both sides have certificates.

use std::{path::Path, process::Command, sync::Arc};

use lapstrake_api_proto::control::{InfoRequest, ListWorkersRequest};
use lapstrake_integration_cli::{Daemon, buildkit::BuildKit, free_address, require};
use tokio::net::TcpStream;
use tokio_rustls::{
    TlsConnector,
    rustls::{
        ClientConfig, RootCertStore,
        pki_types::{CertificateDer, PrivateKeyDer, ServerName, pem::PemObject as _},
    },
};

/// An authority, and certificates of it for a server on this machine and a client.
fn certificates(dir: &Path) {
    require("openssl", "openssl");
    let openssl = |arguments: &[&str]| {
        let output = Command::new("openssl").args(arguments).current_dir(dir).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    };
    let new = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2"];
    let ca = ["req", "-x509", "-keyout", "ca-key.pem", "-out", "ca.pem", "-subj", "/CN=test authority"];
    openssl(&[&ca[..], &new].concat());
    for name in ["server", "client"] {
        let (key, cert) = (format!("{name}-key.pem"), format!("{name}.pem"));
        let subject = format!("/CN={name}");
        let by = ["-CA", "ca.pem", "-CAkey", "ca-key.pem", "-addext", "subjectAltName=IP:127.0.0.1"];
        let request = ["req", "-x509", "-keyout", &key, "-out", &cert, "-subj", &subject];
        openssl(&[&request[..], &new, &by, &["-addext", "basicConstraints=critical,CA:FALSE"]].concat());
    }
}

#[tokio::test]
async fn over_tls_clients_of_grpc_are_those_with_a_certificate() {
    let dir = tempfile::tempdir().unwrap();
    certificates(dir.path());
    let at = |name: &str| dir.path().join(name).display().to_string();
    let address = free_address();
    let (host, ca, cert, key) =
        (format!("tcp://{address}"), at("ca.pem"), at("server.pem"), at("server-key.pem"));
    let _daemon =
        Daemon::start_with(&["--host", &host, "--tlscacert", &ca, "--tlscert", &cert, "--tlskey", &key]);
    let connect = async |has_certificate: bool, protocols: &[&str]| {
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from_pem_file(at("ca.pem")).unwrap()).unwrap();
        let provider = Arc::new(tokio_rustls::rustls::crypto::ring::default_provider());
        let builder =
            ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
        let builder = builder.with_root_certificates(roots);
        let mut config = match has_certificate {
            true => {
                let chain = vec![CertificateDer::from_pem_file(at("client.pem")).unwrap()];
                let key = PrivateKeyDer::from_pem_file(at("client-key.pem")).unwrap();
                builder.with_client_auth_cert(chain, key).unwrap()
            }
            false => builder.with_no_client_auth(),
        };
        config.alpn_protocols = protocols.iter().map(|name| name.as_bytes().to_vec()).collect();
        let io = TcpStream::connect(address).await.unwrap();
        let server = ServerName::try_from("127.0.0.1").unwrap();
        TlsConnector::from(Arc::new(config)).connect(server, io).await
    };
    let stream = connect(true, &["h2"]).await.unwrap();
    assert_eq!(stream.get_ref().1.alpn_protocol(), Some(&b"h2"[..]));
    let buildkit = BuildKit::over(stream).await.unwrap();
    let workers = buildkit.control().list_workers(ListWorkersRequest::default()).await.unwrap();
    assert_eq!(workers.into_inner().record.len(), 1);

    // Who takes either gets what can be taken over.
    let stream = connect(true, &["h2", "http/1.1"]).await.unwrap();
    assert_eq!(stream.get_ref().1.alpn_protocol(), Some(&b"http/1.1"[..]));

    // With TLS 1.3 a stranger is told so after the handshake.
    if let Ok(stream) = connect(false, &["h2"]).await
        && let Ok(stranger) = BuildKit::over(stream).await
    {
        stranger.control().info(InfoRequest {}).await.unwrap_err();
    }
}
