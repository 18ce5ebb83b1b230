//! How old a source is, for `SOURCE_DATE_EPOCH=context` and its like.

use std::{fs::File, io::Read, path::Path};

use lapstrake_builder_dockerfile::EpochSource;
use lapstrake_layerstore_diff::decompress;
use lapstrake_layerstore_store::{StoreError, Stores, Tree};
use rustix::fs::{Mode, OFlags, ResolveFlags};
use tokio_util::sync::CancellationToken;

use crate::StepError;

/// Bytes of an archive, uncompressed, that are looked through for its youngest file. More have no time that we know.
const ARCHIVE_LIMIT: u64 = 64 << 30;

/// Seconds since 1970; `None` if it has no time. Blocks.
pub(crate) fn epoch_of(
    stores: &Stores,
    tree: &Tree,
    source: &EpochSource,
    cancel: &CancellationToken,
) -> Result<Option<i64>, StepError> {
    let Some(open) = stores.open(tree)? else { return Ok(None) };
    let (path, flags) = match source {
        EpochSource::Commit => (Path::new("."), OFlags::DIRECTORY),
        EpochSource::Download { file } => (Path::new(file), OFlags::NONBLOCK | OFlags::NOFOLLOW),
    };
    let failed = |error| StoreError::io("read", path)(error);
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
    let flags = flags | OFlags::RDONLY | OFlags::CLOEXEC;
    let file = rustix::fs::openat2(open.root(), path, flags, Mode::empty(), resolve)
        .map_err(|errno| failed(errno.into()))?;
    let modified = rustix::fs::fstat(&file).map_err(|errno| failed(errno.into()))?.st_mtime;
    match source {
        EpochSource::Commit => Ok(Some(modified)),
        // A server that does not say how old a file is leaves it at the beginning of time.
        EpochSource::Download { .. } if modified != 0 => Ok(Some(modified)),
        EpochSource::Download { .. } => youngest_file(File::from(file), cancel),
    }
}

/// The time of an archive's youngest regular file; `None` for what is no archive.
fn youngest_file(file: File, cancel: &CancellationToken) -> Result<Option<i64>, StepError> {
    let Ok(plain) = decompress(file) else { return Ok(None) };
    let mut archive = tar::Archive::new(plain.take(ARCHIVE_LIMIT));
    let Ok(entries) = archive.entries() else { return Ok(None) };
    let mut youngest = None;
    for entry in entries {
        if cancel.is_cancelled() {
            return Err(StepError::Canceled);
        }
        // What breaks off is no archive.
        let Ok(entry) = entry else { return Ok(None) };
        let header = entry.header();
        if !header.entry_type().is_file() {
            continue;
        }
        let Some(time) = header.mtime().ok().and_then(|time| i64::try_from(time).ok()) else { continue };
        youngest = youngest.max(Some(time));
    }
    Ok(youngest)
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    fn archive(entries: &[(&str, u64, tar::EntryType)]) -> Vec<u8> {
        let mut archive = tar::Builder::new(Vec::new());
        for (name, time, kind) in entries {
            let mut header = tar::Header::new_gnu();
            header.set_mtime(*time);
            header.set_entry_type(*kind);
            header.set_size(0);
            archive.append_data(&mut header, name, std::io::empty()).unwrap();
        }
        archive.into_inner().unwrap()
    }

    fn youngest(bytes: &[u8]) -> Option<i64> {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(bytes).unwrap();
        std::io::Seek::rewind(&mut file).unwrap();
        youngest_file(file, &CancellationToken::new()).unwrap()
    }

    #[test]
    fn an_archive_is_as_old_as_its_youngest_file() {
        use tar::EntryType::{Directory, Regular};
        let bytes =
            archive(&[("d", 900, Directory), ("a", 100, Regular), ("b", 300, Regular), ("c", 200, Regular)]);
        assert_eq!(youngest(&bytes), Some(300));
        assert_eq!(youngest(&archive(&[("d", 900, Directory)])), None);
        assert_eq!(youngest(b"FROM scratch\n"), None);
        assert_eq!(youngest(b"\x1f\x8b\x08 not gzip"), None);
        assert_eq!(youngest(b""), None);
    }
}
