//! The receiver's state: what has been announced, what is on its way, and what is on disk. Blocking; it runs on a thread of its own and is
//! fed packets one by one.

use std::{
    collections::{HashMap, HashSet, VecDeque},
    ffi::OsString,
    io::Write,
    os::{
        fd::{AsFd, BorrowedFd, OwnedFd},
        unix::fs::FileExt,
    },
    path::{Path, PathBuf},
};

use bytes::Bytes;
use rustix::fs::FileType;
use sha2::{Digest, Sha256};

use super::{
    Compare, Destination, Devices, Fork, Limits, Ownership, Received,
    disk::{self, Disk},
    index::{ContentDigest, Entry, Index, OnDisk},
    path::OrderCheck,
    stat::{FileKind, FileStat, TreeEntry},
    wire::{self, Packet, kind},
};
use crate::TransferError;

type Result<T> = std::result::Result<T, TransferError>;

/// Files asked for and not yet complete, at most. It bounds our open files, and must stay below the client's own queue (128 in Go): then a
/// request never waits for the client to read it, so that neither side waits for the other.
pub(crate) const MAX_IN_FLIGHT: usize = 64;

/// An entry's fixed cost against [`Limits::metadata_bytes`], about what it takes in memory.
const ENTRY_COST: u64 = 256;

pub(crate) struct Receiver {
    disk: Disk,
    /// While nothing is different: what gives a directory that may be written to. See [`Receiver::own`].
    fork: Option<Fork>,
    previous: Index,
    compare: Compare,
    ownership: Ownership,
    devices: Devices,
    limits: Limits,
    prefix: fn(&FileStat) -> Vec<u8>,
    order: OrderCheck,
    /// Every announced entry; the protocol's file ids are positions in it.
    entries: Vec<Entry>,
    /// Positions of the entries that were already on disk, and have not been found to differ.
    kept: HashSet<u32>,
    metadata_bytes: u64,
    content_bytes: u64,
    /// The directories that still take entries, the root first.
    open: Vec<OpenDir>,
    /// Files to be asked for.
    wanted: VecDeque<u32>,
    in_flight: HashMap<u32, Incoming>,
    links: Vec<u32>,
    listed: bool,
    files_written: u64,
}

struct OpenDir {
    fd: OwnedFd,
    path: PathBuf,
    /// Names on disk that have not been announced.
    unannounced: HashSet<OsString>,
}

/// A file on its way.
#[derive(Default)]
struct Incoming {
    target: Target,
    /// Bytes that came.
    got: u64,
}

/// Where a file's data goes.
#[derive(Default)]
enum Target {
    /// Nowhere yet: it is opened when its first data comes, so that waiting costs no file descriptor.
    #[default]
    Unopened,
    /// Into a new file.
    New { file: std::fs::File, hash: Sha256 },
    /// It is compared with what is on disk, and has been the same so far.
    Same(std::fs::File),
}

/// What the caller does after a packet.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Next {
    /// Feed the next packet.
    More,
    /// Everything is here: call [`Receiver::complete`].
    Complete,
}

impl Receiver {
    pub(crate) fn new(destination: Destination) -> Result<Self> {
        let Destination { dir, fork, previous, compare, ownership, devices, limits, prefix } = destination;
        let disk = if fork.is_some() { Disk::shared(&dir, ownership)? } else { Disk::open(&dir, ownership)? };
        let root = OpenDir { fd: disk.root()?, path: PathBuf::new(), unannounced: disk.root_names()? };
        Ok(Self {
            disk,
            fork,
            previous,
            compare,
            ownership,
            devices,
            limits,
            prefix,
            order: OrderCheck::new(),
            entries: Vec::new(),
            kept: HashSet::new(),
            metadata_bytes: 0,
            content_bytes: 0,
            open: vec![root],
            wanted: VecDeque::new(),
            in_flight: HashMap::new(),
            links: Vec::new(),
            listed: false,
            files_written: 0,
        })
    }

    /// Handles one packet; `request` sends one, and never has to wait.
    pub(crate) fn feed(&mut self, packet: Packet, request: &mut dyn FnMut(Packet)) -> Result<Next> {
        let protocol = |problem| Err(TransferError::Protocol { problem });
        match packet.kind {
            kind::STAT if self.listed => return protocol("entry after the end of the list"),
            kind::STAT => match packet.stat {
                Some(stat) => self.announce(stat)?,
                None => {
                    self.listed = true;
                    self.leave(self.open.len())?;
                }
            },
            kind::DATA => self.data(packet.id, &packet.data)?,
            kind::ERR => {
                let shown = &packet.data[..packet.data.len().min(4096)];
                return Err(TransferError::Peer { message: String::from_utf8_lossy(shown).into_owned() });
            }
            kind::FIN => return protocol("end before everything was sent"),
            kind::REQ => return protocol("request from the side that sends"),
            _ => return protocol("unknown packet"),
        }
        while self.in_flight.len() < MAX_IN_FLIGHT {
            let Some(id) = self.wanted.pop_front() else { break };
            self.in_flight.insert(id, Incoming::default());
            request(Packet::request(id));
        }
        let complete = self.listed && self.in_flight.is_empty();
        Ok(if complete { Next::Complete } else { Next::More })
    }

    /// What was only read until now is written to from here on: the caller gives a clone of it, and all goes on there. What was kept is the
    /// same inodes in the clone, so that open files stay right.
    fn own(&mut self) -> Result<()> {
        let Some(fork) = self.fork.take() else { return Ok(()) };
        let (dir, index) = fork()?;
        let before = std::mem::replace(&mut self.disk, Disk::open(&dir, self.ownership)?);
        self.previous = index;
        for open in &mut self.open {
            open.fd = self.disk.dir(&open.path)?;
        }
        // What could not be linked there (an inode has only so many links) has been compared, and will not be sent: it is copied.
        let mut left_out: Vec<u32> = self.kept.iter().copied().collect();
        left_out.retain(|id| self.previous.get(&self.entries[*id as usize].path).is_none());
        left_out.sort_unstable();
        for id in left_out {
            self.copy_from(&before, id)?;
        }
        Ok(())
    }

    /// Makes an entry as it is in `before`.
    fn copy_from(&self, before: &Disk, id: u32) -> Result<()> {
        let Entry { path, stat, .. } = &self.entries[id as usize];
        let parent = path.parent().unwrap_or(Path::new(""));
        let to = self.disk.dir(parent)?;
        match &stat.kind {
            FileKind::Regular { size } => {
                let old = before.open_file(before.dir(parent)?.as_fd(), path)?;
                let mut new = self.disk.create(to.as_fd(), path)?;
                copy_start(&old, *size, path, &mut |piece| {
                    new.write_all(piece).map_err(failed("write", path))
                })?;
                self.disk.set_metadata(new.as_fd(), stat, path)
            }
            FileKind::Symlink { target } => {
                self.disk.symlink(to.as_fd(), target, path)?;
                self.disk.set_metadata_at(to.as_fd(), stat, path, true)
            }
            FileKind::HardLink { target } => self.disk.link(target, path),
            _ => Ok(()),
        }
    }

    /// Whether an announced directory is not what it was.
    fn is_changed(&self, entry: &Entry) -> bool {
        entry.stat.kind == FileKind::Directory
            && self.previous.get(&entry.path).is_none_or(|earlier| earlier.stat != entry.stat)
    }

    /// Makes the hard links, sets the directories' metadata, and notes what is on disk.
    pub(crate) fn complete(mut self) -> Result<Received> {
        if !self.links.is_empty() || self.entries.iter().any(|entry| self.is_changed(entry)) {
            self.own()?;
        }
        for id in std::mem::take(&mut self.links) {
            let entry = &self.entries[id as usize];
            let FileKind::HardLink { target } = &entry.stat.kind else { continue };
            self.disk.link(target, &entry.path)?;
        }
        // Backwards, so that what is in a directory comes before it: nothing touches it after its time is set.
        let mut parent: Option<(PathBuf, OwnedFd)> = None;
        for position in (0..self.entries.len()).rev() {
            let on_disk = self.settle(position, &mut parent)?;
            let digest = match &self.entries[position].stat.kind {
                FileKind::HardLink { target } => self.position(target).and_then(|t| self.entries[t].digest),
                _ => self.entries[position].digest,
            };
            let entry = &mut self.entries[position];
            (entry.on_disk, entry.digest) = (on_disk, digest);
        }
        Ok(Received {
            index: Index::new(self.entries),
            files_written: self.files_written,
            bytes_transferred: 0,
        })
    }

    /// Final metadata of one entry; its state on disk after that.
    fn settle(&self, position: usize, parent: &mut Option<(PathBuf, OwnedFd)>) -> Result<OnDisk> {
        let entry = &self.entries[position];
        if entry.stat.kind == FileKind::Directory {
            if self.fork.is_some() {
                return Ok(OnDisk::default());
            }
            let dir = self.disk.dir(&entry.path)?;
            self.disk.drop_stale_xattrs(dir.as_fd(), &entry.stat, &entry.path)?;
            self.disk.set_metadata(dir.as_fd(), &entry.stat, &entry.path)?;
            return Ok(OnDisk::default());
        }
        let dir = entry.path.parent().unwrap_or(Path::new(""));
        let fd = match parent {
            Some((path, fd)) if path == dir => fd,
            _ => &mut parent.insert((dir.to_owned(), self.disk.dir(dir)?)).1,
        };
        match self.disk.stat(fd.as_fd(), &entry.path)? {
            Some(stat) => Ok(disk::on_disk(&stat)),
            None => Err(TransferError::Io {
                operation: "stat",
                path: entry.path.clone(),
                source: std::io::ErrorKind::NotFound.into(),
            }),
        }
    }

    fn announce(&mut self, stat: wire::Stat) -> Result<()> {
        self.count(&stat)?;
        let TreeEntry { path, mut stat } = TreeEntry::from_wire(stat)?;
        // -1 means "leave it" to chown.
        if stat.uid == u32::MAX || stat.gid == u32::MAX {
            return Err(TransferError::Refused { path, kind: "impossible owner" });
        }
        match stat.kind {
            FileKind::Directory | FileKind::Regular { .. } => {
                stat.xattrs.retain(|name, _| disk::keeps_xattr(name));
            }
            _ => stat.xattrs.clear(),
        }
        let place = self.order.admit(&path, stat.kind == FileKind::Directory)?;
        self.leave(place.left)?;
        let id = u32::try_from(self.entries.len())
            .map_err(|_| TransferError::TooLarge { limit: u32::MAX.into(), unit: "entries" })?;
        let parent = self.open.last_mut().expect("the root stays open until the list ends");
        let present = parent.unannounced.remove(&place.name);
        let (digest, seen_ns) = match stat.kind {
            FileKind::Directory => {
                self.directory(&path, present)?;
                (None, 0)
            }
            _ => match self.keep(id, &path, &stat, present)? {
                Some(kept) => {
                    if self.compare == Compare::Content
                        && matches!(stat.kind, FileKind::Regular { size } if size > 0)
                    {
                        self.wanted.push_back(id);
                    }
                    kept
                }
                None => {
                    self.make(id, &path, &stat)?;
                    (None, now_ns())
                }
            },
        };
        self.entries.push(Entry { path, stat, digest, on_disk: OnDisk::default(), seen_ns });
        Ok(())
    }

    /// Counts an entry against the limits.
    fn count(&mut self, stat: &wire::Stat) -> Result<()> {
        let too_large = |limit, unit| Err(TransferError::TooLarge { limit, unit });
        if self.entries.len() as u64 >= self.limits.entries {
            return too_large(self.limits.entries, "entries");
        }
        let xattrs: usize = stat.xattrs.iter().map(|x| x.key.len() + x.value.len()).sum();
        let bytes = (stat.path.len() + stat.linkname.len() + xattrs) as u64 + ENTRY_COST;
        self.metadata_bytes = self.metadata_bytes.saturating_add(bytes);
        if self.metadata_bytes > self.limits.metadata_bytes {
            return too_large(self.limits.metadata_bytes, "bytes of metadata");
        }
        if stat.path.iter().filter(|b| **b == b'/').count() as u64 >= self.limits.depth {
            return too_large(self.limits.depth, "levels of directories");
        }
        let size = if stat.linkname.is_empty() { u64::try_from(stat.size).unwrap_or(0) } else { 0 };
        self.content_bytes = self.content_bytes.saturating_add(size);
        if self.content_bytes > self.limits.content_bytes {
            return too_large(self.limits.content_bytes, "bytes of content");
        }
        Ok(())
    }

    /// Closes the innermost directories: what has not been announced in them by now is gone at the client.
    fn leave(&mut self, count: usize) -> Result<()> {
        for _ in 0..count {
            if self.open.last().is_some_and(|dir| !dir.unannounced.is_empty()) {
                self.own()?;
            }
            let Some(dir) = self.open.pop() else { break };
            for name in &dir.unannounced {
                self.disk.remove(dir.fd.as_fd(), &dir.path.join(name))?;
            }
        }
        Ok(())
    }

    /// The directory that takes entries now.
    fn parent(&self) -> BorrowedFd<'_> {
        self.open.last().expect("the root stays open until the list ends").fd.as_fd()
    }

    fn directory(&mut self, path: &Path, present: bool) -> Result<()> {
        let is_dir = present
            && self.disk.stat(self.parent(), path)?.is_some_and(|s| file_type(&s) == FileType::Directory);
        if is_dir
            && self.fork.is_some()
            && let Some((fd, unannounced)) = self.disk.look_into(self.parent(), path)?
        {
            self.open.push(OpenDir { fd, path: path.to_owned(), unannounced });
            return Ok(());
        }
        self.own()?;
        let parent = self.parent();
        if present && !is_dir {
            self.disk.remove(parent, path)?;
        }
        let name = path.file_name().expect("validated paths have a name");
        let (fd, unannounced) = self.disk.enter(parent, name, path)?;
        self.open.push(OpenDir { fd, path: path.to_owned(), unannounced });
        Ok(())
    }

    /// Keeps what is on disk (its digest, and when it was announced), or makes room for what is to come.
    fn keep(
        &mut self,
        id: u32,
        path: &Path,
        stat: &FileStat,
        present: bool,
    ) -> Result<Option<(Option<ContentDigest>, i64)>> {
        let Some(found) = (if present { self.disk.stat(self.parent(), path)? } else { None }) else {
            return Ok(None);
        };
        let kept = self.keepable(path, stat, &found).map(|earlier| (earlier.digest, earlier.seen_ns));
        match kept {
            Some(_) => drop(self.kept.insert(id)),
            None => {
                self.own()?;
                self.disk.remove(self.parent(), path)?;
            }
        }
        Ok(kept)
    }

    /// Makes, or asks for, anything but a directory.
    fn make(&mut self, id: u32, path: &Path, stat: &FileStat) -> Result<()> {
        if matches!(
            stat.kind,
            FileKind::Symlink { .. }
                | FileKind::Fifo
                | FileKind::CharDevice { .. }
                | FileKind::BlockDevice { .. }
        ) {
            self.own()?;
        }
        let parent = self.parent();
        match &stat.kind {
            FileKind::Directory => return Ok(()),
            FileKind::Regular { .. } => {
                self.wanted.push_back(id);
                return Ok(());
            }
            FileKind::HardLink { target } => {
                let known = self.position(target).map(|t| &self.entries[t].stat.kind);
                let file = known.is_some_and(|k| {
                    !matches!(k, FileKind::Directory | FileKind::Symlink { .. } | FileKind::HardLink { .. })
                });
                if !file {
                    return Err(TransferError::BadLink { path: path.to_owned(), target: target.clone() });
                }
                self.links.push(id);
                return Ok(());
            }
            FileKind::Symlink { target } => {
                self.disk.symlink(parent, target, path)?;
                return self.disk.set_metadata_at(parent, stat, path, true);
            }
            FileKind::Fifo => self.disk.make_node(parent, path, FileType::Fifo, (0, 0))?,
            FileKind::CharDevice { major, minor } | FileKind::BlockDevice { major, minor } => {
                if self.devices == Devices::Refuse {
                    return Err(TransferError::Refused { path: path.to_owned(), kind: "device node" });
                }
                let block = matches!(stat.kind, FileKind::BlockDevice { .. });
                let kind = if block { FileType::BlockDevice } else { FileType::CharacterDevice };
                self.disk.make_node(parent, path, kind, (*major, *minor))?;
            }
        }
        self.disk.set_metadata_at(parent, stat, path, false)
    }

    /// The earlier transfer's entry, if what is on disk is still what that put there and the client still announces the same.
    fn keepable(&self, path: &Path, stat: &FileStat, found: &rustix::fs::Stat) -> Option<&Entry> {
        let earlier = self.previous.get(path)?;
        if earlier.stat != *stat || earlier.on_disk != disk::on_disk(found) {
            return None;
        }
        match &stat.kind {
            FileKind::Regular { .. } => {
                let trusted = self.compare == Compare::Content || !earlier.is_racy();
                (earlier.digest.is_some() && trusted).then_some(earlier)
            }
            // Whether the file it names is the one it was, its data has yet to tell.
            FileKind::HardLink { .. } if self.compare == Compare::Content => None,
            // The link is right as long as the file it names was kept: then both are the inode they were.
            FileKind::HardLink { target } => {
                let target = u32::try_from(self.position(target)?).ok()?;
                let same = self.previous.get(&self.entries[target as usize].path)?.on_disk.inode
                    == earlier.on_disk.inode;
                (same && self.kept.contains(&target)).then_some(earlier)
            }
            // Inode and ctime are the same, so its text is.
            FileKind::Symlink { .. } => Some(earlier),
            _ => None,
        }
    }

    fn position(&self, path: &Path) -> Option<usize> {
        self.entries.binary_search_by(|e| e.path.as_path().cmp(path)).ok()
    }

    fn data(&mut self, id: u32, data: &Bytes) -> Result<()> {
        let Some(mut incoming) = self.in_flight.remove(&id) else {
            return Err(TransferError::Protocol { problem: "data of a file that was not asked for" });
        };
        let entry = &self.entries[id as usize];
        let FileKind::Regular { size } = entry.stat.kind else {
            return Err(TransferError::Protocol { problem: "data of something that is no file" });
        };
        let got = incoming.got.saturating_add(data.len() as u64);
        if got > size || (data.is_empty() && got != size) {
            return Err(TransferError::SizeChanged { path: entry.path.clone(), announced: size, got });
        }
        if matches!(incoming.target, Target::Unopened) {
            incoming.target = self.target(id)?;
        }
        if data.is_empty() {
            return self.end(id, incoming.target);
        }
        incoming.target = match incoming.target {
            Target::Same(file)
                if is_next(&file, data, incoming.got)
                    .map_err(failed("read", &self.entries[id as usize].path))? =>
            {
                Target::Same(file)
            }
            Target::Same(file) => self.replace(id, &file, incoming.got)?,
            other => other,
        };
        if let Target::New { file, hash } = &mut incoming.target {
            file.write_all(data).map_err(failed("write", &self.entries[id as usize].path))?;
            hash.update(data);
        }
        incoming.got = got;
        self.in_flight.insert(id, incoming);
        Ok(())
    }

    /// Opens what a file's data is compared with, or written to.
    fn target(&mut self, id: u32) -> Result<Target> {
        let kept = self.kept.contains(&id);
        if !kept {
            self.own()?;
        }
        let Entry { path, stat, .. } = &self.entries[id as usize];
        let dir = self.disk.dir(path.parent().unwrap_or(Path::new("")))?;
        if kept {
            return Ok(Target::Same(self.disk.open_file(dir.as_fd(), path)?));
        }
        let hash = Sha256::new_with_prefix((self.prefix)(stat));
        Ok(Target::New { file: self.disk.create(dir.as_fd(), path)?, hash })
    }

    /// Puts a new file in the place of `old`, with its first `same` bytes: others may share the old one's inode.
    fn replace(&mut self, id: u32, old: &std::fs::File, same: u64) -> Result<Target> {
        self.own()?;
        self.kept.remove(&id);
        let entry = &mut self.entries[id as usize];
        (entry.digest, entry.seen_ns) = (None, now_ns());
        let path = &entry.path;
        let dir = self.disk.dir(path.parent().unwrap_or(Path::new("")))?;
        self.disk.remove(dir.as_fd(), path)?;
        let mut file = self.disk.create(dir.as_fd(), path)?;
        let mut hash = Sha256::new_with_prefix((self.prefix)(&entry.stat));
        copy_start(old, same, path, &mut |piece| {
            hash.update(piece);
            file.write_all(piece).map_err(failed("write", path))
        })?;
        Ok(Target::New { file, hash })
    }

    /// All of a file's data has come.
    fn end(&mut self, id: u32, target: Target) -> Result<()> {
        if let Target::New { file, hash } = target {
            let entry = &mut self.entries[id as usize];
            self.disk.set_metadata(file.as_fd(), &entry.stat, &entry.path)?;
            entry.digest = Some(hash.finalize().into());
            self.files_written += 1;
        }
        Ok(())
    }
}

/// How much of a file is read at a time.
const PIECE: usize = 64 * 1024;

/// Gives the first `length` bytes of `file`, in pieces.
fn copy_start(
    file: &std::fs::File,
    length: u64,
    path: &Path,
    take: &mut dyn FnMut(&[u8]) -> Result<()>,
) -> Result<()> {
    let mut buffer = vec![0; PIECE];
    let mut at = 0;
    while at < length {
        let piece = &mut buffer[..usize::try_from(length - at).map_or(PIECE, |left| left.min(PIECE))];
        file.read_exact_at(piece, at).map_err(failed("read", path))?;
        take(piece)?;
        at += piece.len() as u64;
    }
    Ok(())
}

/// Whether `file` goes on with `data` at `at`.
fn is_next(file: &std::fs::File, data: &[u8], at: u64) -> std::io::Result<bool> {
    let mut buffer = [0; PIECE];
    let mut at = at;
    for wanted in data.chunks(PIECE) {
        let found = &mut buffer[..wanted.len()];
        match file.read_exact_at(found, at) {
            Ok(()) if found == wanted => at += wanted.len() as u64,
            Ok(()) => return Ok(false),
            Err(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => return Ok(false),
            Err(error) => return Err(error),
        }
    }
    Ok(true)
}

fn failed(operation: &'static str, path: &Path) -> impl FnOnce(std::io::Error) -> TransferError {
    let path = path.to_owned();
    move |source| TransferError::Io { operation, path, source }
}

fn now_ns() -> i64 {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    now.map_or(0, |d| i64::try_from(d.as_nanos()).unwrap_or(i64::MAX))
}

fn file_type(stat: &rustix::fs::Stat) -> FileType {
    FileType::from_raw_mode(stat.st_mode)
}
