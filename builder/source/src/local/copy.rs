//! A directory of this machine, copied.

use std::{
    collections::BTreeMap,
    os::{
        fd::AsFd,
        unix::ffi::{OsStrExt, OsStringExt},
    },
    path::{Path, PathBuf},
    sync::Arc,
};

use lapstrake_layerstore_store::Tree;
use lapstrake_session::fsutil::copy_tree;
use rustix::fs::{CWD, Mode, OFlags, Stat};
use tokio_util::sync::CancellationToken;

use super::{
    Listing, LocalSpec, follow,
    reuse::Reuse,
    walk::{Owner, Seen, SelectedTree},
};
use crate::{SourceContext, SourceError, sources::Shared};

/// Copies what the op selects of the directory at `path`.
pub(super) async fn directory(
    shared: &Arc<Shared>,
    spec: &Arc<LocalSpec>,
    path: &Path,
    cx: &SourceContext,
) -> Result<Tree, SourceError> {
    let path = std::path::absolute(path).map_err(SourceError::io("find", path))?;
    // The process's own directories share a key with no client's: its keys begin with a name, which has no colon before it.
    let key = format!(":directory:{}:{}:{}", spec.name, spec.hint, path.display());
    let _turn = cx.or_canceled(shared.turns.take(&key)).await?;
    let mut part = cx.vertex.part(spec.part(), "transferring", 0);
    // Dropping this future stops the copying, too.
    let cancel = cx.cancel.child_token();
    let _stop = cancel.clone().drop_guard();
    let (shared, spec) = (Arc::clone(shared), Arc::clone(spec));
    SourceError::blocking(move || {
        let mut progress = |bytes| part.update(bytes, 0);
        copy(&shared, &spec, &path, &key, &cancel, &mut progress)
    })
    .await
}

fn copy(
    shared: &Arc<Shared>,
    spec: &Arc<LocalSpec>,
    path: &Path,
    key: &str,
    cancel: &CancellationToken,
    progress: &mut dyn FnMut(u64),
) -> Result<Tree, SourceError> {
    let failed = |source| match (source, cancel.is_cancelled()) {
        (_, true) => SourceError::Canceled,
        (source, false) => SourceError::Copy { origin: spec.origin(), source },
    };
    // The directory itself may be named by a symlink: whoever named it may see where it leads.
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let root = rustix::fs::openat(CWD, path, flags, Mode::empty())
        .map_err(|errno| SourceError::io("open directory", path)(errno.into()))?;
    let mut include = spec.include.clone().unwrap_or_default();
    if let Some(follow) = &spec.follow {
        let followed =
            follow::resolve(root.as_fd(), follow).map_err(SourceError::io("follow links in", path))?;
        include.extend(followed.unwrap_or_default());
    }
    let tree = SelectedTree { root, selection: spec.selection_with(include)?, owner: Owner::Root };
    let now = identities(&tree).map_err(SourceError::io("list", path))?;
    let mut reuse = Reuse::find(shared, key)?;
    // Kept is what was copied from the very file that is there now, unchanged by its ctime, which no program can set.
    let before = decode(&reuse.listing.extra);
    reuse.listing.index.retain_files(|entry| {
        now.get(&entry.path).is_some_and(|identity| before.get(&entry.path) == Some(identity))
    });
    let (begun, destination) = reuse.begin(shared, spec)?;
    let received = copy_tree(&tree, destination, cancel, progress).map_err(failed)?;
    let listing = Listing { index: received.index, extra: encode(&now) };
    begun.finish(shared, spec, Some(key), &listing)
}

/// Which file it is, and in which state.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Identity {
    device: u64,
    inode: u64,
    ctime: (i64, i64),
}

fn identity(stat: &Stat) -> Identity {
    Identity {
        device: stat.st_dev,
        inode: stat.st_ino,
        ctime: (stat.st_ctime, i64::try_from(stat.st_ctime_nsec).unwrap_or(0)),
    }
}

/// Taken before anything is copied: what changes later has another identity then.
fn identities(tree: &SelectedTree) -> std::io::Result<BTreeMap<PathBuf, Identity>> {
    let mut found = BTreeMap::new();
    tree.visit(&mut |seen: &Seen<'_>| {
        found.insert(seen.path.to_owned(), identity(seen.stat));
        Ok::<(), std::io::Error>(())
    })?;
    Ok(found)
}

/// For each path: its length (4 bytes), itself, device, inode, ctime (8 bytes each, little endian).
fn encode(identities: &BTreeMap<PathBuf, Identity>) -> Vec<u8> {
    let mut bytes = Vec::new();
    for (path, identity) in identities {
        let path = path.as_os_str().as_bytes();
        let Ok(length) = u32::try_from(path.len()) else { continue };
        bytes.extend(length.to_le_bytes());
        bytes.extend(path);
        bytes.extend(identity.device.to_le_bytes());
        bytes.extend(identity.inode.to_le_bytes());
        bytes.extend(identity.ctime.0.to_le_bytes());
        bytes.extend(identity.ctime.1.to_le_bytes());
    }
    bytes
}

/// As much as can be read; what is missing is copied again.
fn decode(mut bytes: &[u8]) -> BTreeMap<PathBuf, Identity> {
    let mut found = BTreeMap::new();
    while let Some((path, identity)) = decode_one(&mut bytes) {
        found.insert(path, identity);
    }
    found
}

fn decode_one(bytes: &mut &[u8]) -> Option<(PathBuf, Identity)> {
    let (length, rest) = bytes.split_first_chunk::<4>()?;
    let (path, rest) = rest.split_at_checked(usize::try_from(u32::from_le_bytes(*length)).ok()?)?;
    let (device, rest) = rest.split_first_chunk::<8>()?;
    let (inode, rest) = rest.split_first_chunk::<8>()?;
    let (seconds, rest) = rest.split_first_chunk::<8>()?;
    let (nanos, rest) = rest.split_first_chunk::<8>()?;
    *bytes = rest;
    let identity = Identity {
        device: u64::from_le_bytes(*device),
        inode: u64::from_le_bytes(*inode),
        ctime: (i64::from_le_bytes(*seconds), i64::from_le_bytes(*nanos)),
    };
    Some((std::ffi::OsString::from_vec(path.to_vec()).into(), identity))
}
