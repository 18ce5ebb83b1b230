//! A file that comes over a network, into a tree of its own.

use std::{fs::File, os::fd::AsFd, path::Path};

use bytes::Bytes;
use futures::{Stream, StreamExt};
use lapstrake_layerstore_oci::{Algorithm, Digest, Digester};
use lapstrake_layerstore_store::{Stores, Tree};
use rustix::fs::{Gid, Mode, OFlags, Timespec, Timestamps, Uid};
use tokio::io::AsyncWriteExt;

use crate::SourceError;

/// What a file is to be, once its content is there.
#[derive(Debug, Clone)]
pub(crate) struct FileSpec {
    /// Whose content it is, for errors.
    pub(crate) origin: String,
    /// Of one component.
    pub(crate) name: String,
    /// Permission bits; 0600 when 0.
    pub(crate) mode: u32,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    /// Seconds since 1970.
    pub(crate) modified: i64,
}

/// A saved file.
pub(crate) struct Saved {
    pub(crate) tree: Tree,
    pub(crate) digest: Digest,
}

/// Writes `content`, of at most `limit` bytes, to a file of a new tree. Nothing stays when it fails or is dropped.
pub(crate) async fn save(
    stores: &Stores,
    spec: FileSpec,
    limit: u64,
    mut content: impl Stream<Item = Result<Bytes, SourceError>> + Unpin,
) -> Result<Saved, SourceError> {
    let FileSpec { origin, name, mode, uid, gid, modified } = spec;
    let (draft, file) = {
        let (stores, name) = (stores.clone(), name.clone());
        SourceError::blocking(move || {
            let draft = stores.begin(&Tree::empty())?;
            let open = draft.open()?;
            let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            let file = rustix::fs::openat(open.root(), Path::new(&name), flags, Mode::RUSR | Mode::WUSR)
                .map_err(|errno| SourceError::io("create", &name)(errno.into()))?;
            Ok::<_, SourceError>((draft, File::from(file)))
        })
        .await?
    };
    let written = || SourceError::io("write", &name);
    let mut file = tokio::fs::File::from_std(file);
    let mut digest = Digester::new(Algorithm::Sha256);
    let mut length: u64 = 0;
    while let Some(chunk) = content.next().await {
        let chunk = chunk?;
        length = length.saturating_add(chunk.len() as u64);
        if length > limit {
            return Err(SourceError::TooLarge { origin, limit });
        }
        digest.update(&chunk);
        file.write_all(&chunk).await.map_err(written())?;
    }
    file.flush().await.map_err(written())?;
    let file = file.into_std().await;
    let (uid, gid) = (Uid::from_raw(uid), Gid::from_raw(gid));
    let mode = Mode::from_raw_mode(if mode == 0 { 0o600 } else { mode });
    let tree = SourceError::blocking(move || {
        let settle = || -> rustix::io::Result<()> {
            rustix::fs::fchown(file.as_fd(), Some(uid), Some(gid))?;
            rustix::fs::fchmod(file.as_fd(), mode)?;
            let time = Timespec { tv_sec: modified, tv_nsec: 0 };
            rustix::fs::futimens(file.as_fd(), &Timestamps { last_access: time, last_modification: time })
        };
        settle().map_err(|errno| SourceError::io("set metadata of", &name)(errno.into()))?;
        drop(file);
        Ok::<_, SourceError>(draft.commit()?)
    })
    .await?;
    Ok(Saved { tree, digest: digest.finish() })
}
