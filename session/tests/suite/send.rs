//! A directory sent to the client's disk.

use std::{
    collections::BTreeMap,
    io::{self, Read},
    path::{Path, PathBuf},
    sync::Arc,
};

use futures::StreamExt;
use lapstrake_api_proto::{
    filesync::directory::file_send_server::{FileSend, FileSendServer},
    fsutil::{Packet, packet::PacketType},
};
use lapstrake_session::{
    Coverage, DirTree, Error, ExporterId, Sent, SessionCaller, SessionId, SessionInfo, Sessions,
    TransferError, TreeReader, Wait,
    fsutil::{FileKind, FileStat, TreeEntry},
};
use parking_lot::Mutex;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status, Streaming, transport::Server};

use crate::common::{self, METHODS, Seen};

/// What the client does with what it is sent.
#[derive(Clone, Copy, PartialEq)]
enum Behaviour {
    /// Asks for every file, and ends when it has them.
    TakeAll,
    /// Wants no file: it has them all.
    TakeNothing,
    /// Asks for something that is no file.
    AskForNoFile,
    /// Asks for a file twice.
    AskTwice,
    /// Reports an error.
    Fail,
    /// Ends before it has asked for anything, while the list is still coming.
    EndAtOnce,
    /// Takes the list and says nothing.
    Silent,
}

/// Go mode, link text and contents by path.
type Got = BTreeMap<PathBuf, (u32, String, Vec<u8>)>;

#[derive(Clone)]
struct Client {
    behaviour: Behaviour,
    got: Arc<Mutex<Got>>,
    seen: Arc<Mutex<Seen>>,
}

impl Client {
    fn new(behaviour: Behaviour) -> Self {
        Self { behaviour, got: Arc::default(), seen: Arc::default() }
    }

    async fn connect(&self) -> SessionCaller {
        let (daemon, client) = tokio::net::UnixStream::pair().unwrap();
        let incoming = futures::stream::iter([Ok::<_, io::Error>(client)]).chain(futures::stream::pending());
        let server = Server::builder().add_service(FileSendServer::new(self.clone()));
        tokio::spawn(server.serve_with_incoming(incoming));
        let sessions = Sessions::new();
        let info = SessionInfo::new(SessionId::parse("s").unwrap()).with_methods(METHODS);
        tokio::spawn(sessions.register(info, daemon).unwrap());
        sessions.get("s", Wait::AtMost(std::time::Duration::from_secs(20))).await.unwrap()
    }
}

#[tonic::async_trait]
impl FileSend for Client {
    type DiffCopyStream = ReceiverStream<Result<Packet, Status>>;

    async fn diff_copy(
        &self,
        request: Request<Streaming<Packet>>,
    ) -> Result<Response<Self::DiffCopyStream>, Status> {
        self.seen.lock().send_metadata = Some(request.metadata().clone());
        let (out, answers) = mpsc::channel(1000);
        tokio::spawn(receive(self.clone(), request.into_inner(), out));
        Ok(Response::new(ReceiverStream::new(answers)))
    }
}

fn packet(kind: PacketType, id: u32) -> Packet {
    Packet { r#type: kind.into(), id, ..Packet::default() }
}

async fn receive(client: Client, mut incoming: Streaming<Packet>, out: mpsc::Sender<Result<Packet, Status>>) {
    let mut paths: Vec<(PathBuf, bool)> = Vec::new();
    let mut open = 0;
    let (mut listed, mut finished) = (false, false);
    if client.behaviour == Behaviour::EndAtOnce {
        let _ = out.send(Ok(packet(PacketType::PacketFin, 0))).await;
    }
    loop {
        let message = match incoming.message().await {
            Ok(Some(message)) => message,
            Ok(None) => return assert!(finished || client.behaviour != Behaviour::TakeAll),
            Err(_) => return,
        };
        match message.r#type() {
            PacketType::PacketStat => match message.stat {
                Some(stat) => {
                    let is_file = stat.mode & common::tree::DIR == 0
                        && stat.mode & common::tree::SYMLINK == 0
                        && stat.linkname.is_empty();
                    let id = paths.len() as u32;
                    paths.push((PathBuf::from(&stat.path), is_file));
                    client.got.lock().insert((&stat.path).into(), (stat.mode, stat.linkname, Vec::new()));
                    let ask = match client.behaviour {
                        Behaviour::TakeAll => is_file,
                        Behaviour::AskForNoFile => !is_file,
                        Behaviour::AskTwice => is_file,
                        _ => false,
                    };
                    if ask {
                        open += 1;
                        let _ = out.send(Ok(packet(PacketType::PacketReq, id))).await;
                        if client.behaviour == Behaviour::AskTwice {
                            let _ = out.send(Ok(packet(PacketType::PacketReq, id))).await;
                        }
                    }
                }
                None => listed = true,
            },
            PacketType::PacketData if message.data.is_empty() => open -= 1,
            PacketType::PacketData => {
                let path = &paths[message.id as usize].0;
                client.got.lock().get_mut(path).unwrap().2.extend(message.data);
            }
            PacketType::PacketFin => finished = true,
            PacketType::PacketErr if client.behaviour == Behaviour::Silent => {}
            PacketType::PacketErr => {
                client.seen.lock().errors.push(String::from_utf8_lossy(&message.data).into_owned());
                let _ = out.send(Err(Status::unknown("error from sender"))).await;
                return;
            }
            PacketType::PacketReq => panic!("request from the sender"),
        }
        if listed && open == 0 && !finished {
            match client.behaviour {
                Behaviour::TakeAll | Behaviour::TakeNothing => {
                    let _ = out.send(Ok(packet(PacketType::PacketFin, 0))).await;
                }
                Behaviour::Fail => {
                    let error = Packet { data: b"no space".to_vec(), ..packet(PacketType::PacketErr, 0) };
                    let _ = out.send(Ok(error)).await;
                }
                _ => {}
            }
        }
    }
}

fn sample(dir: &Path) {
    std::fs::create_dir_all(dir.join("d/e")).unwrap();
    std::fs::write(dir.join("d/e/big"), vec![9; 1_000_000]).unwrap();
    std::fs::write(dir.join("d.x"), "x").unwrap();
    std::fs::write(dir.join("empty"), "").unwrap();
    std::fs::hard_link(dir.join("d.x"), dir.join("linked")).unwrap();
    std::os::unix::fs::symlink("/etc/passwd", dir.join("sym")).unwrap();
}

fn dir_tree(dir: &Path) -> Arc<DirTree> {
    Arc::new(DirTree::new(std::fs::File::open(dir).unwrap().into()))
}

async fn send(client: &Client, tree: Arc<dyn TreeReader>, coverage: Coverage) -> Result<Sent, Error> {
    let caller = client.connect().await;
    caller.send_dir(ExporterId(2), tree, coverage, None, &CancellationToken::new()).await
}

#[tokio::test]
async fn a_directory_arrives_whole() {
    let dir = tempfile::tempdir().unwrap();
    sample(dir.path());
    let client = Client::new(Behaviour::TakeAll);
    let sent = send(&client, dir_tree(dir.path()), Coverage::Whole).await.unwrap();
    assert_eq!(sent, Sent { entries: 7, content_bytes: 1_000_001 });
    let got = client.got.lock();
    assert_eq!(got[Path::new("d/e/big")].2, vec![9; 1_000_000]);
    assert_eq!(got[Path::new("d.x")].2, b"x");
    assert_eq!(got[Path::new("linked")].1, "d.x");
    assert_eq!(got[Path::new("sym")].1, "/etc/passwd");
    assert_eq!(got[Path::new("sym")].0 & common::tree::SYMLINK, common::tree::SYMLINK);
    let seen = client.seen.lock();
    let headers = seen.send_metadata.as_ref().unwrap();
    assert_eq!(headers.get("buildkit-attachable-exporter-id").unwrap(), "2");
    assert_eq!(headers.get("buildkit-exporter-multi-platform").unwrap(), "1");
}

#[tokio::test]
async fn a_part_of_an_output_does_not_claim_to_be_all() {
    let dir = tempfile::tempdir().unwrap();
    sample(dir.path());
    let client = Client::new(Behaviour::TakeNothing);
    let sent = send(&client, dir_tree(dir.path()), Coverage::Partial).await.unwrap();
    assert_eq!(sent.content_bytes, 0);
    assert!(
        client.seen.lock().send_metadata.as_ref().unwrap().get("buildkit-exporter-multi-platform").is_none()
    );
}

#[tokio::test]
async fn an_empty_directory_can_be_sent() {
    let dir = tempfile::tempdir().unwrap();
    let client = Client::new(Behaviour::TakeAll);
    let sent = send(&client, dir_tree(dir.path()), Coverage::Partial).await.unwrap();
    assert_eq!(sent.entries, 0);
}

#[tokio::test]
async fn requests_that_make_no_sense_are_errors() {
    for behaviour in [Behaviour::AskForNoFile, Behaviour::AskTwice] {
        let dir = tempfile::tempdir().unwrap();
        sample(dir.path());
        let error = send(&Client::new(behaviour), dir_tree(dir.path()), Coverage::Partial).await.unwrap_err();
        let protocol = matches!(&error, Error::Transfer { transfer, .. } if matches!(**transfer, TransferError::Protocol { .. }));
        assert!(protocol, "{error:?}");
    }
}

#[tokio::test]
async fn the_clients_error_is_passed_on() {
    let dir = tempfile::tempdir().unwrap();
    sample(dir.path());
    let error =
        send(&Client::new(Behaviour::Fail), dir_tree(dir.path()), Coverage::Partial).await.unwrap_err();
    assert!(error.to_string().contains("no space"), "{error}");
}

#[tokio::test]
async fn cancelling_ends_a_transfer_that_the_client_does_not_take() {
    let dir = tempfile::tempdir().unwrap();
    sample(dir.path());
    let client = Client::new(Behaviour::Silent);
    let caller = client.connect().await;
    let cancel = CancellationToken::new();
    let token = cancel.clone();
    let tree = dir_tree(dir.path());
    let transfer =
        tokio::spawn(
            async move { caller.send_dir(ExporterId(0), tree, Coverage::Partial, None, &token).await },
        );
    while client.got.lock().len() < 7 {
        tokio::task::yield_now().await;
    }
    cancel.cancel();
    assert!(matches!(transfer.await.unwrap(), Err(Error::Cancelled { .. })));
}

/// A tree whose storage misbehaves.
enum Broken {
    Unsorted,
    WalkFails,
    OpenFails,
    /// Reads this many bytes more than it lists.
    Longer(usize),
    Shorter,
    /// Lists without end.
    Endless,
}

impl TreeReader for Broken {
    fn walk(&self, visit: &mut dyn FnMut(TreeEntry) -> io::Result<()>) -> io::Result<()> {
        let entry = |path: &str| {
            let kind = FileKind::Regular { size: 10 };
            let stat = FileStat { kind, mode: 0o644, uid: 0, gid: 0, mtime_ns: 0, xattrs: BTreeMap::new() };
            TreeEntry { path: path.into(), stat }
        };
        visit(entry("b"))?;
        match self {
            Self::Unsorted => visit(entry("a")),
            Self::WalkFails => Err(io::Error::other("bad sector")),
            Self::Endless => {
                for n in 0_u64.. {
                    visit(entry(&format!("c{n:020}")))?;
                }
                Ok(())
            }
            _ => Ok(()),
        }
    }

    fn open(&self, _: &Path) -> io::Result<Box<dyn Read + Send>> {
        let length = match self {
            Self::OpenFails => return Err(io::Error::other("bad sector")),
            Self::Longer(more) => 10 + more,
            Self::Shorter => 9,
            _ => 10,
        };
        Ok(Box::new(io::Cursor::new(vec![0; length])))
    }
}

#[tokio::test]
async fn a_tree_that_fails_fails_the_transfer_and_tells_the_client() {
    for (tree, words) in [
        (Broken::Unsorted, "out of order"),
        (Broken::WalkFails, "bad sector"),
        (Broken::OpenFails, "bad sector"),
        (Broken::Longer(1), "announced 10 bytes, got 11"),
        (Broken::Longer(1_000_000), "announced 10 bytes"),
        (Broken::Shorter, "announced 10 bytes, got 9"),
    ] {
        let client = Client::new(Behaviour::TakeAll);
        let error = send(&client, Arc::new(tree), Coverage::Partial).await.unwrap_err();
        assert!(error.to_string().contains(words), "{error}");
        assert!(client.seen.lock().errors[0].contains(words));
    }
}

#[tokio::test]
async fn a_tree_that_fails_ends_the_transfer_even_if_the_client_does_not_listen() {
    let client = Client::new(Behaviour::Silent);
    let error = send(&client, Arc::new(Broken::Unsorted), Coverage::Partial).await.unwrap_err();
    assert!(error.to_string().contains("out of order"), "{error}");
}

#[tokio::test]
async fn an_end_before_the_list_is_complete_is_an_error() {
    let client = Client::new(Behaviour::EndAtOnce);
    let error = send(&client, Arc::new(Broken::Endless), Coverage::Partial).await.unwrap_err();
    assert!(error.to_string().contains("end before everything was sent"), "{error}");
}
