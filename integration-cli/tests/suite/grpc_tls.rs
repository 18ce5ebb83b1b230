//! gRPC over TCP with TLS, where both sides have certificates.

use std::sync::Arc;

use lapstrake_api_proto::control::{InfoRequest, ListWorkersRequest};
use lapstrake_integration_cli::{Certificate, Daemon, buildkit::BuildKit, free_address};
use tokio::net::TcpStream;
use tokio_rustls::{
    TlsConnector,
    rustls::{
        ClientConfig, RootCertStore,
        pki_types::{CertificateDer, PrivateKeyDer, ServerName, pem::PemObject as _},
    },
};

#[tokio::test]
async fn over_tls_clients_of_grpc_are_those_with_a_certificate() {
    let dir = tempfile::tempdir().unwrap();
    let authority = Certificate::authority(dir.path(), "ca");
    for name in ["server", "client"] {
        authority.vouch(dir.path(), name, "IP:127.0.0.1");
    }
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
