//! TCP with TLS.

use std::{io, path::Path, sync::Arc, time::Duration};

use lapstrake_api_server::Accept;
use tokio::{
    net::{TcpListener, TcpStream},
    sync::{Semaphore, mpsc},
    task::JoinHandle,
};
use tokio_rustls::{
    TlsAcceptor,
    rustls::{
        RootCertStore, ServerConfig,
        crypto::ring,
        pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _},
        server::WebPkiClientVerifier,
    },
    server::TlsStream,
};

use crate::{error::ProgramError, settings::TcpSecurity};

/// Handshakes at once; more connections wait in the kernel's queue.
const HANDSHAKES: usize = 64;
/// Longest time for one.
const HANDSHAKE_TIME: Duration = Duration::from_secs(10);

/// What a server needs to speak TLS; `None` for [`TcpSecurity::Plain`].
pub(crate) fn acceptor(security: &TcpSecurity) -> Result<Option<TlsAcceptor>, ProgramError> {
    let (cert, key, ca) = match security {
        TcpSecurity::Plain => return Ok(None),
        TcpSecurity::ServerOnly { cert, key } => (cert, key, None),
        TcpSecurity::Mutual { cert, key, ca } => (cert, key, Some(ca)),
    };
    let provider = Arc::new(ring::default_provider());
    let failed = |what: String| move |source| ProgramError::Tls { what, source };
    let builder = ServerConfig::builder_with_provider(Arc::clone(&provider))
        .with_safe_default_protocol_versions()
        .map_err(failed("TLS".to_owned()))?;
    let builder = match ca {
        None => builder.with_no_client_auth(),
        Some(ca) => {
            let mut roots = RootCertStore::empty();
            for certificate in certificates(ca)? {
                roots.add(certificate).map_err(failed(format!("certificate authority {}", ca.display())))?;
            }
            let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider)
                .build()
                .map_err(|error| ProgramError::setting(ca.display().to_string(), error.to_string()))?;
            builder.with_client_cert_verifier(verifier)
        }
    };
    let private = PrivateKeyDer::from_pem_file(key)
        .map_err(|error| ProgramError::setting(format!("key {}", key.display()), error.to_string()))?;
    let mut config = builder.with_single_cert(certificates(cert)?, private).map_err(failed(format!(
        "certificate {} and key {}",
        cert.display(),
        key.display()
    )))?;
    // gRPC's clients ask for h2 alone. Who takes either is better off with HTTP/1.1, as the Engine API's hijacks need it: so that is first.
    config.alpn_protocols = vec![b"http/1.1".to_vec(), b"h2".to_vec()];
    Ok(Some(TlsAcceptor::from(Arc::new(config))))
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, ProgramError> {
    let wrong = |why: String| ProgramError::setting(format!("certificate {}", path.display()), why);
    let found: Result<Vec<_>, _> =
        CertificateDer::pem_file_iter(path).map_err(|error| wrong(error.to_string()))?.collect();
    let found = found.map_err(|error| wrong(error.to_string()))?;
    if found.is_empty() {
        return Err(wrong("holds no certificate".to_owned()));
    }
    Ok(found)
}

/// A listener whose connections have shaken hands: one client that is slow at it keeps nobody else waiting.
pub(crate) struct TlsListener {
    connections: mpsc::Receiver<io::Result<TlsStream<TcpStream>>>,
    accepting: JoinHandle<()>,
}

impl TlsListener {
    /// Begins to accept.
    pub(crate) fn start(listener: TcpListener, acceptor: TlsAcceptor) -> Self {
        let (sender, connections) = mpsc::channel(1);
        Self { connections, accepting: tokio::spawn(accept(listener, acceptor, sender)) }
    }
}

impl Accept for TlsListener {
    type Io = TlsStream<TcpStream>;

    async fn accept(&mut self) -> io::Result<Self::Io> {
        match self.connections.recv().await {
            Some(connection) => connection,
            None => Err(io::Error::other("the TLS listener ended")),
        }
    }
}

impl Drop for TlsListener {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

async fn accept(
    listener: TcpListener,
    acceptor: TlsAcceptor,
    sender: mpsc::Sender<io::Result<TlsStream<TcpStream>>>,
) {
    let places = Arc::new(Semaphore::new(HANDSHAKES));
    loop {
        let place = Arc::clone(&places).acquire_owned().await.expect("the semaphore is never closed");
        let stream = match listener.accept().await.and_then(|(stream, _)| {
            stream.set_nodelay(true)?;
            Ok(stream)
        }) {
            Ok(stream) => stream,
            Err(error) => {
                if sender.send(Err(error)).await.is_err() {
                    return;
                }
                continue;
            }
        };
        let (acceptor, sender) = (acceptor.clone(), sender.clone());
        // Bounded by the places and by time; ends with its connection.
        tokio::spawn(async move {
            let shaken = tokio::time::timeout(HANDSHAKE_TIME, acceptor.accept(stream)).await;
            let result = shaken.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()));
            // The listener may be gone.
            let _ = sender.send(result.map_err(|error| io::Error::other(format!("TLS: {error}")))).await;
            drop(place);
        });
    }
}
