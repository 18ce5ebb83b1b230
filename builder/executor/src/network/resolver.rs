//! A resolver for sandboxes on a machine whose own listens on loopback, where they cannot reach it.
//!
//! It hands what it gets, unread, to the machine's name servers and the answer back. Everything is bounded: what is under way, how
//! long it may take; more is dropped, as UDP may be.

use std::{
    io,
    net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener as StdTcpListener, UdpSocket as StdUdpSocket},
    sync::Arc,
    time::Duration,
};

use tokio::{
    net::{TcpListener, TcpStream, UdpSocket},
    sync::Semaphore,
    time::timeout,
};
use tokio_util::sync::CancellationToken;

use super::switch;

const PORT: u16 = 53;
/// Queries under way at once.
const MAX_QUERIES: usize = 256;
/// Connections open at once.
const MAX_CONNECTIONS: usize = 32;
/// A name server that has not answered by then is passed over, as libc has it.
const ANSWER_WITHIN: Duration = Duration::from_secs(5);
const CONNECTION_WITHIN: Duration = Duration::from_secs(30);
/// DNS over UDP has no larger messages.
const MAX_MESSAGE: usize = 64 << 10;
/// As many as libc asks.
const MAX_SERVERS: usize = 3;

/// Sockets that nobody serves yet.
#[derive(Debug)]
pub(super) struct Resolver {
    udp: StdUdpSocket,
    tcp: StdTcpListener,
}

/// Who is asked: a list that may change.
pub(super) type Upstream = Arc<dyn Fn() -> Vec<IpAddr> + Send + Sync>;

impl Resolver {
    /// Opens the sockets in the network namespace of this thread.
    pub(super) fn bind(address: Ipv4Addr) -> io::Result<Self> {
        let (udp, tcp) = switch::listen(address)?;
        Ok(Self { udp, tcp })
    }

    /// Serves them until `stop` fires. Called within a tokio runtime, whose threads are in the machine's own network namespace.
    pub(super) fn serve(self, upstream: Upstream, stop: CancellationToken) -> io::Result<()> {
        let udp = Arc::new(UdpSocket::from_std(self.udp)?);
        let tcp = TcpListener::from_std(self.tcp)?;
        let queries = serve_queries(udp, Arc::clone(&upstream));
        tokio::spawn(stop.clone().run_until_cancelled_owned(queries));
        tokio::spawn(stop.run_until_cancelled_owned(serve_connections(tcp, upstream)));
        Ok(())
    }
}

async fn serve_queries(socket: Arc<UdpSocket>, upstream: Upstream) {
    let places = Arc::new(Semaphore::new(MAX_QUERIES));
    let mut buffer = vec![0; MAX_MESSAGE];
    loop {
        // Errors are of single packets (a sender that is gone).
        let Ok((length, client)) = socket.recv_from(&mut buffer).await else {
            tokio::task::yield_now().await;
            continue;
        };
        let Ok(place) = Arc::clone(&places).try_acquire_owned() else { continue };
        let (query, socket, upstream) =
            (buffer[..length].to_vec(), Arc::clone(&socket), Arc::clone(&upstream));
        tokio::spawn(async move {
            for server in servers(&upstream) {
                if let Ok(Ok(answer)) = timeout(ANSWER_WITHIN, ask(server, &query)).await {
                    let _ = socket.send_to(&answer, client).await;
                    break;
                }
            }
            drop(place);
        });
    }
}

/// One query to one server, from a port of its own, so that a guess from elsewhere has to hit it.
async fn ask(server: SocketAddr, query: &[u8]) -> io::Result<Vec<u8>> {
    let any: IpAddr =
        if server.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { std::net::Ipv6Addr::UNSPECIFIED.into() };
    let socket = UdpSocket::bind((any, 0)).await?;
    socket.connect(server).await?;
    socket.send(query).await?;
    let mut buffer = vec![0; MAX_MESSAGE];
    loop {
        let length = socket.recv(&mut buffer).await?;
        // The query's number comes first.
        if length >= 2 && query.get(..2) == Some(&buffer[..2]) {
            buffer.truncate(length);
            return Ok(buffer);
        }
    }
}

async fn serve_connections(listener: TcpListener, upstream: Upstream) {
    let places = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    loop {
        let place = Arc::clone(&places).acquire_owned().await.expect("the semaphore is never closed");
        let Ok((mut client, _)) = listener.accept().await else {
            tokio::task::yield_now().await;
            continue;
        };
        let upstream = Arc::clone(&upstream);
        tokio::spawn(async move {
            for server in servers(&upstream) {
                if let Ok(Ok(mut server)) = timeout(ANSWER_WITHIN, TcpStream::connect(server)).await {
                    let both = tokio::io::copy_bidirectional(&mut client, &mut server);
                    let _ = timeout(CONNECTION_WITHIN, both).await;
                    break;
                }
            }
            drop(place);
        });
    }
}

fn servers(upstream: &Upstream) -> Vec<SocketAddr> {
    upstream().into_iter().take(MAX_SERVERS).map(|ip| SocketAddr::new(ip, PORT)).collect()
}
