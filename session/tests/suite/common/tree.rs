//! A tree in memory, and fsutil's sender written on the wire types.

use std::{
    collections::{BTreeMap, HashMap},
    path::PathBuf,
    sync::Arc,
};

use lapstrake_api_proto::fsutil::{Packet, Stat, packet::PacketType};
use lapstrake_session::fsutil::{FileKind, FileStat, TreeEntry};
use parking_lot::Mutex;
use tokio::sync::mpsc;
use tonic::{Status, Streaming};

use super::{Seen, data_packet, end_of_list, stat_packet};

pub(crate) const DIR: u32 = 1 << 31;
pub(crate) const SYMLINK: u32 = 1 << 27;
pub(crate) const DEVICE: u32 = 1 << 26;
pub(crate) const FIFO: u32 = 1 << 25;
pub(crate) const SOCKET: u32 = 1 << 24;
pub(crate) const CHAR: u32 = 1 << 21;
pub(crate) const SETUID: u32 = 1 << 23;
pub(crate) const STICKY: u32 = 1 << 20;

/// Long enough ago not to be racy, and no whole second.
pub(crate) const OLD: i64 = 1_600_000_000_123_456_789;

#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Node {
    pub(crate) stat: Stat,
    pub(crate) data: Vec<u8>,
}

/// Sorted as paths are: component by component.
pub(crate) type Tree = BTreeMap<PathBuf, Node>;

fn stat(mode: u32) -> Stat {
    Stat { mode, mod_time: OLD, ..Stat::default() }
}

pub(crate) fn dir(mode: u32) -> Node {
    Node { stat: stat(DIR | mode), data: Vec::new() }
}

pub(crate) fn file(mode: u32, data: &[u8]) -> Node {
    Node { stat: Stat { size: data.len() as i64, ..stat(mode) }, data: data.to_vec() }
}

pub(crate) fn symlink(to: &str) -> Node {
    Node { stat: Stat { linkname: to.into(), ..stat(SYMLINK | 0o777) }, data: Vec::new() }
}

pub(crate) fn hard_link(to: &str) -> Node {
    Node { stat: Stat { linkname: to.into(), ..stat(0o644) }, data: Vec::new() }
}

pub(crate) fn tree<const N: usize>(nodes: [(&str, Node); N]) -> Tree {
    nodes
        .into_iter()
        .map(|(path, mut node)| {
            node.stat.path = path.into();
            (path.into(), node)
        })
        .collect()
}

/// What a receiver should have of a tree.
pub(crate) fn expected(tree: &Tree) -> Vec<TreeEntry> {
    tree.iter()
        .map(|(path, node)| {
            let s = &node.stat;
            let kind = if s.mode & DIR != 0 {
                FileKind::Directory
            } else if s.mode & SYMLINK != 0 {
                FileKind::Symlink { target: (&s.linkname).into() }
            } else if s.mode & FIFO != 0 {
                FileKind::Fifo
            } else if !s.linkname.is_empty() {
                FileKind::HardLink { target: (&s.linkname).into() }
            } else {
                FileKind::Regular { size: s.size as u64 }
            };
            let special = [(SETUID, 0o4000), (STICKY, 0o1000)];
            let mode = special
                .iter()
                .filter(|(go, _)| s.mode & go != 0)
                .fold(s.mode & 0o777, |m, (_, unix)| m | unix);
            let xattrs = s.xattrs.iter().map(|(k, v)| (k.clone().into_bytes(), v.clone())).collect();
            let stat = FileStat { kind, mode, uid: s.uid, gid: s.gid, mtime_ns: s.mod_time, xattrs };
            TreeEntry { path: path.clone(), stat }
        })
        .collect()
}

/// fsutil's sender: lists all, answers requests meanwhile, ends when told.
pub(crate) async fn send(
    tree: Tree,
    mut incoming: Streaming<Packet>,
    out: mpsc::Sender<Result<Packet, Status>>,
    seen: Arc<Mutex<Seen>>,
) {
    let nodes: Vec<Node> = tree.into_values().collect();
    let files: HashMap<u32, Vec<u8>> =
        nodes.iter().enumerate().map(|(id, n)| (id as u32, n.data.clone())).collect();
    let list_out = out.clone();
    tokio::spawn(async move {
        for node in nodes {
            if list_out.send(Ok(stat_packet(node.stat))).await.is_err() {
                return;
            }
        }
        let _ = list_out.send(Ok(end_of_list())).await;
    });
    while let Ok(Some(packet)) = incoming.message().await {
        match packet.r#type() {
            PacketType::PacketReq => {
                seen.lock().requests.push(packet.id);
                for chunk in files[&packet.id].chunks(1000) {
                    let _ = out.send(Ok(data_packet(packet.id, chunk))).await;
                }
                let _ = out.send(Ok(data_packet(packet.id, &[]))).await;
            }
            PacketType::PacketFin => {
                let fin = Packet { r#type: PacketType::PacketFin.into(), ..Packet::default() };
                let _ = out.send(Ok(fin)).await;
                return;
            }
            PacketType::PacketErr => {
                let message = String::from_utf8_lossy(&packet.data).into_owned();
                seen.lock().errors.push(message.clone());
                let _ = out.send(Err(Status::unknown(format!("error from receiver: {message}")))).await;
                return;
            }
            _ => panic!("unexpected packet"),
        }
    }
}
