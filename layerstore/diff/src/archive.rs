//! An archive's entries one after the other, for those who do not unpack it.

use std::io::{self, Read};

use crate::{
    DiffError, Limits,
    tar::{Kind, reader::TarReader},
};

/// What an entry is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MemberKind {
    /// A regular file, whose content is read from the [`ArchiveReader`].
    File,
    /// Another name of a file that the archive has.
    HardLink,
    /// A symbolic link.
    Symlink,
    /// A directory.
    Directory,
    /// Anything else: devices, pipes, files with holes.
    Other,
}

/// One entry. Names and links are as they stand in the archive: nothing is known of them but their length.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Member {
    /// Its name.
    pub name: Vec<u8>,
    /// What it is.
    pub kind: MemberKind,
    /// Where a link leads.
    pub link: Vec<u8>,
    /// Bytes of content.
    pub size: u64,
}

/// Reads the entries of a (decompressed) tar stream. Memory is bounded by the limits.
pub struct ArchiveReader<R>(TarReader<R>);

impl<R: Read> ArchiveReader<R> {
    /// Reads from `stream`.
    pub fn new(stream: R, limits: &Limits) -> Self {
        Self(TarReader::new(stream, limits))
    }

    /// The next entry, or `None` after the last. What was not read of the entry before is skipped.
    pub fn next_member(&mut self) -> Result<Option<Member>, DiffError> {
        let Some(entry) = self.0.next_entry()? else { return Ok(None) };
        let kind = match entry.kind {
            Kind::File if entry.sparse.is_none() => MemberKind::File,
            Kind::HardLink => MemberKind::HardLink,
            Kind::Symlink => MemberKind::Symlink,
            Kind::Directory => MemberKind::Directory,
            _ => MemberKind::Other,
        };
        Ok(Some(Member { name: entry.name, kind, link: entry.link, size: entry.size }))
    }

    /// Reads the stream to its end, so that whoever writes it can finish.
    pub fn drain(self) -> Result<(), DiffError> {
        self.0.drain().map(drop)
    }

    /// Reads some of the current entry's content.
    pub fn read_content(&mut self, buffer: &mut [u8]) -> Result<usize, DiffError> {
        self.0.read_content(buffer)
    }
}

/// The current entry's content. A [`DiffError`] comes wrapped in the [`io::Error`].
impl<R: Read> Read for ArchiveReader<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.read_content(buffer).map_err(io::Error::other)
    }
}

impl<R> std::fmt::Debug for ArchiveReader<R> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("ArchiveReader")
    }
}
