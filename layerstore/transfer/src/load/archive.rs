//! A stranger's archive, taken in without unpacking it: small files into memory, others as blobs, names into a map.
//!
//! Nothing of it is ever a path of this machine. Links are followed within the map, as if its root were `/`.

use std::{
    collections::{HashMap, VecDeque},
    io::{Cursor, Read, Write},
    sync::Arc,
};

use bytes::Bytes;
use lapstrake_layerstore_diff::{ArchiveReader, Limits, MemberKind, decompress};
use lapstrake_layerstore_oci::{Algorithm, Digest, DigestReader};
use lapstrake_layerstore_store::{Lease, Resource, StoreError, Stores};
use tokio_util::sync::CancellationToken;

use crate::{TransferError, cancellable::Cancellable};

/// A file of up to this many bytes is held in memory.
const SMALL: u64 = 64 << 10;
/// Bytes that such files may take together; the others are blobs.
const MEMORY: u64 = 16 << 20;
/// Bytes that all names and link targets may take together.
const NAMES: u64 = 64 << 20;
/// Links followed on the way to one file.
const MAX_LINKS: usize = 40;
const BUFFER: usize = 128 << 10;

/// A file of the archive.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Stored {
    /// In memory.
    Small(Bytes),
    /// In the content store, held by the archive's lease.
    Blob {
        /// Its digest (SHA-256).
        digest: Digest,
        /// Its length in bytes.
        size: u64,
    },
}

impl Stored {
    pub(crate) fn size(&self) -> u64 {
        match self {
            Self::Small(bytes) => bytes.len() as u64,
            Self::Blob { size, .. } => *size,
        }
    }

    /// Its digest (SHA-256).
    pub(crate) fn digest(&self) -> Digest {
        match self {
            Self::Small(bytes) => Digest::sha256_of(bytes),
            Self::Blob { digest, .. } => digest.clone(),
        }
    }

    pub(crate) fn reader(&self, stores: &Stores) -> Result<Box<dyn Read + Send>, TransferError> {
        Ok(match self {
            Self::Small(bytes) => Box::new(Cursor::new(bytes.clone())),
            Self::Blob { digest, .. } => Box::new(stores.content.reader(digest)?),
        })
    }

    /// Makes it a blob, held by `lease`.
    pub(crate) fn into_blob(self, stores: &Stores, lease: &Lease) -> Result<Digest, TransferError> {
        match self {
            Self::Small(bytes) => Ok(stores.content.write_small_held(&bytes, lease)?),
            Self::Blob { digest, .. } => Ok(digest),
        }
    }

    /// Reads a document that must not be longer than `limit`.
    pub(crate) fn document(&self, stores: &Stores, name: &str, limit: u64) -> Result<Bytes, TransferError> {
        if self.size() > limit {
            return Err(TransferError::archive(format!("{name} is larger than {limit} bytes")));
        }
        match self {
            Self::Small(bytes) => Ok(bytes.clone()),
            Self::Blob { digest, .. } => Ok(stores.content.read_small(digest, limit)?.into()),
        }
    }

    /// Whether its bytes have this digest.
    pub(crate) fn is(&self, stores: &Stores, expected: &Digest) -> Result<bool, TransferError> {
        if expected.algorithm() == Algorithm::Sha256 {
            return Ok(self.digest() == *expected);
        }
        let mut reader = DigestReader::with_algorithm(self.reader(stores)?, expected.algorithm());
        std::io::copy(&mut reader, &mut std::io::sink())
            .map_err(TransferError::io("hash a file of an archive"))?;
        Ok(reader.finish().1 == *expected)
    }
}

enum Node {
    File(Stored),
    Symlink(Vec<u8>),
    HardLink(Vec<u8>),
    /// A directory, or what no image is made of.
    Other,
}

/// An archive that was taken in.
pub(crate) struct Archive {
    nodes: HashMap<Vec<u8>, Node>,
    /// Holds its blobs.
    pub(crate) lease: Arc<Lease>,
}

impl Archive {
    /// Reads a tar stream, plain or compressed, to its end.
    pub(crate) fn read(
        stores: &Stores,
        reader: impl Read + Send,
        cancel: &CancellationToken,
    ) -> Result<Self, TransferError> {
        let mut archive = Self { nodes: HashMap::new(), lease: Arc::new(stores.leases.create()) };
        let read = archive.fill(stores, reader, cancel);
        if cancel.is_cancelled() {
            return Err(TransferError::Canceled);
        }
        read?;
        Ok(archive)
    }

    fn fill(
        &mut self,
        stores: &Stores,
        reader: impl Read + Send,
        cancel: &CancellationToken,
    ) -> Result<(), TransferError> {
        let limits = Limits { entries: 200_000, ..Limits::default() };
        let plain = decompress(Cancellable { inner: reader, cancel }).map_err(TransferError::ReadArchive)?;
        let mut members = ArchiveReader::new(plain, &limits);
        let (mut memory, mut names) = (MEMORY, NAMES);
        while let Some(member) = members.next_member().map_err(TransferError::ReadArchive)? {
            let length = (member.name.len() + member.link.len()) as u64;
            names = names
                .checked_sub(length)
                .ok_or_else(|| TransferError::archive("its names are too long all together"))?;
            let node = match member.kind {
                MemberKind::File if member.size <= SMALL.min(memory) => {
                    memory -= member.size;
                    let mut bytes = Vec::with_capacity(usize::try_from(member.size).unwrap_or(0));
                    copy(&mut members, &mut bytes)?;
                    Node::File(Stored::Small(bytes.into()))
                }
                MemberKind::File => Node::File(self.blob(stores, &mut members)?),
                MemberKind::Symlink => Node::Symlink(member.link),
                MemberKind::HardLink => Node::HardLink(member.link),
                MemberKind::Directory | MemberKind::Other => Node::Other,
            };
            let name = join(&clean(&member.name));
            // A directory's entry may come again after what is in it; it is nothing to us.
            if !(matches!(node, Node::Other) && self.nodes.contains_key(&name)) {
                self.nodes.insert(name, node);
            }
        }
        members.drain().map_err(TransferError::ReadArchive)
    }

    fn blob(&self, stores: &Stores, members: &mut ArchiveReader<impl Read>) -> Result<Stored, TransferError> {
        let mut writer = stores.content.writer()?;
        copy(members, &mut writer)?;
        let (digest, size) = (writer.digest(), writer.offset());
        // Held before it is there, so that collection never sees it unheld.
        self.lease.hold(Resource::Blob(digest.clone()));
        writer.commit(Some(&digest), Some(size))?;
        Ok(Stored::Blob { digest, size })
    }

    /// The file at a path, or `None`. Links are followed; `..` ends at the root.
    pub(crate) fn find(&self, path: &[u8]) -> Option<&Stored> {
        let mut left: VecDeque<Vec<u8>> = clean(path).into();
        let mut at: Vec<Vec<u8>> = Vec::new();
        let mut links = 0;
        while let Some(component) = left.pop_front() {
            if component == b".." {
                at.pop();
                continue;
            }
            at.push(component);
            let target = match self.nodes.get(&join(&at)) {
                Some(Node::File(stored)) => return left.is_empty().then_some(stored),
                Some(Node::Symlink(target)) => {
                    if target.starts_with(b"/") {
                        at.clear()
                    } else {
                        at.truncate(at.len() - 1)
                    }
                    target
                }
                Some(Node::HardLink(target)) => {
                    at.clear();
                    target
                }
                Some(Node::Other) | None => continue,
            };
            links += 1;
            if links > MAX_LINKS {
                return None;
            }
            for component in components(target).rev() {
                left.push_front(component.to_vec());
            }
        }
        None
    }

    /// As [`Self::find`], with an error that names what is missing.
    pub(crate) fn get(&self, path: &str) -> Result<&Stored, TransferError> {
        self.find(path.as_bytes())
            .ok_or_else(|| TransferError::archive(format!("it names {path:.256} and does not contain it")))
    }
}

/// Copies the current member's content.
fn copy(members: &mut ArchiveReader<impl Read>, out: &mut impl Write) -> Result<(), TransferError> {
    let mut buffer = vec![0; BUFFER];
    loop {
        match members.read_content(&mut buffer).map_err(TransferError::ReadArchive)? {
            0 => return Ok(()),
            count => out
                .write_all(&buffer[..count])
                .map_err(StoreError::io("write", "blob"))
                .map_err(TransferError::from)?,
        }
    }
}

fn components(path: &[u8]) -> impl DoubleEndedIterator<Item = &[u8]> {
    path.split(|byte| *byte == b'/').filter(|part| !part.is_empty() && *part != b".")
}

/// Components, `..` taken back where there is something to take back and kept out of the root.
fn clean(path: &[u8]) -> Vec<Vec<u8>> {
    let mut out: Vec<Vec<u8>> = Vec::new();
    for component in components(path) {
        if component == b".." {
            out.pop();
        } else {
            out.push(component.to_vec());
        }
    }
    out
}

fn join(components: &[Vec<u8>]) -> Vec<u8> {
    components.join(&b'/')
}
