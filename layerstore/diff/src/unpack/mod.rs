//! Unpacking archives that are not layers: build contexts, and archives that `ADD` extracts.
//!
//! # Why nothing can leave the target
//!
//! A name is taken apart into components; `..` that would leave is an error. Each component is looked at from a handle of
//! the directory before it, and opened without following links. A symbolic link on the way is read and walked by us, `/`
//! and `..` ending at the target's root. Entries are made with calls that name one component of an open directory and do
//! not follow it. So a path is never handed to the kernel whole, except with `openat2(RESOLVE_BENEATH, RESOLVE_NO_SYMLINKS)`.

mod extract;
pub(crate) mod path;

use std::{
    io::{BufReader, Read},
    os::fd::{BorrowedFd, OwnedFd},
    path::Path,
};

use rustix::fs::{CWD, Mode, OFlags, ResolveFlags};

pub(crate) use extract::{Extractor, Rules};

use crate::{DiffError, Limits, decompress, lower::Lower, tar::reader::TarReader};

/// What was unpacked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Unpacked {
    /// Entries.
    pub entries: u64,
    /// Bytes of file content.
    pub size: u64,
    /// Whether its modes are permissions alone, without the file's type.
    pub bare_modes: bool,
}

/// How [`unpack_archive`] differs from the archive's own word.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct ArchiveOptions {
    /// User and group that everything gets (`ADD --chown`); `None` keeps the archive's.
    pub owner: Option<(u32, u32)>,
}

/// How much is read from a stream at once.
const BUFFER: usize = 64 << 10;

/// What holds for an archive that is no layer.
const RULES: Rules =
    Rules { whiteouts: false, mark_opaque: false, owner: None, lenient_xattrs: true, no_devices: false };

/// Unpacks the (decompressed) tar stream of a build context into an existing directory, by Moby's rules: owners, modes,
/// times and extended attributes as in the archive, later entries replacing earlier ones, whiteouts not special,
/// names with a leading slash taken from the directory, and names or hard links that leave it an error
/// ([`DiffError::Breakout`]). Device nodes are an error too, as in a context from a session: a client must not make
/// nodes for this machine's devices.
///
/// After an error the directory holds part of the archive. The stream is read to its end.
pub fn unpack_context(tar: impl Read, directory: &Path, limits: &Limits) -> Result<Unpacked, DiffError> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let root = rustix::fs::openat(CWD, directory, flags, Mode::empty());
    let rules = Rules { no_devices: true, ..RULES };
    unpack(tar, root.map_err(DiffError::path("open", directory))?, rules, limits)
}

/// Unpacks a (decompressed) tar stream into the existing directory `path` below `root`, as `ADD` of a local archive does.
///
/// Symbolic links in `path` end at `root`. To the archive, the directory is the root: absolute links inside of it, and
/// `..`, end there, as with Docker, which changes its root to it. Otherwise as [`unpack_context`].
pub fn unpack_archive(
    tar: impl Read,
    root: BorrowedFd<'_>,
    path: &Path,
    options: &ArchiveOptions,
    limits: &Limits,
) -> Result<Unpacked, DiffError> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
    let inside = rustix::fs::openat2(root, path, flags, Mode::empty(), resolve);
    let rules = Rules { owner: options.owner, ..RULES };
    unpack(tar, inside.map_err(DiffError::path("open", path))?, rules, limits)
}

fn unpack(tar: impl Read, root: OwnedFd, rules: Rules, limits: &Limits) -> Result<Unpacked, DiffError> {
    let mut reader = TarReader::new(BufReader::with_capacity(BUFFER, tar), limits);
    Extractor::new(root, Lower::none(), rules).run(&mut reader)?;
    let unpacked =
        Unpacked { entries: reader.entries(), size: reader.content(), bare_modes: reader.bare_modes() };
    reader.drain()?;
    Ok(unpacked)
}

/// Whether a stream is a tar archive with at least one entry, perhaps compressed: what `ADD` extracts. Reads only its beginning.
pub fn is_archive(stream: impl Read + Send) -> bool {
    let Ok(plain) = decompress(stream) else {
        return false;
    };
    matches!(TarReader::new(plain, &Limits::default()).next_entry(), Ok(Some(_)))
}
