//! A file that comes over a network, into a tree of its own.

use std::{fs::File, os::fd::AsFd, path::Path};

use bytes::Bytes;
use futures::{Stream, StreamExt};
use lapstrake_layerstore_oci::{Algorithm, Digest, Digester};
use lapstrake_layerstore_store::{Stores, Tree};
use rustix::fs::{Gid, Mode, OFlags, Timespec, Timestamps, Uid};
use tokio::io::AsyncWriteExt;

use super::HttpSpec;
use crate::SourceError;

/// A saved file.
pub(super) struct Saved {
    pub(super) tree: Tree,
    pub(super) digest: Digest,
}

/// Writes `content` to the file `name` of a new tree. Nothing stays when it fails or is dropped.
pub(super) async fn save(
    stores: &Stores,
    spec: &HttpSpec,
    name: &str,
    modified: Option<i64>,
    limit: u64,
    mut content: impl Stream<Item = Result<Bytes, SourceError>> + Unpin,
) -> Result<Saved, SourceError> {
    let (draft, file) = {
        let (stores, name) = (stores.clone(), name.to_owned());
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
    let written = || SourceError::io("write", name);
    let mut file = tokio::fs::File::from_std(file);
    let mut digest = Digester::new(Algorithm::Sha256);
    let mut length: u64 = 0;
    while let Some(chunk) = content.next().await {
        let chunk = chunk?;
        length = length.saturating_add(chunk.len() as u64);
        if length > limit {
            return Err(SourceError::TooLarge { origin: spec.origin(), limit });
        }
        digest.update(&chunk);
        file.write_all(&chunk).await.map_err(written())?;
    }
    file.flush().await.map_err(written())?;
    let file = file.into_std().await;
    let (uid, gid) = (Uid::from_raw(spec.uid), Gid::from_raw(spec.gid));
    let mode = Mode::from_raw_mode(if spec.mode == 0 { 0o600 } else { spec.mode });
    let name = name.to_owned();
    let tree = SourceError::blocking(move || {
        let settle = || -> rustix::io::Result<()> {
            rustix::fs::fchown(file.as_fd(), Some(uid), Some(gid))?;
            rustix::fs::fchmod(file.as_fd(), mode)?;
            let time = Timespec { tv_sec: modified.unwrap_or(0), tv_nsec: 0 };
            rustix::fs::futimens(file.as_fd(), &Timestamps { last_access: time, last_modification: time })
        };
        settle().map_err(|errno| SourceError::io("set metadata of", &name)(errno.into()))?;
        drop(file);
        Ok::<_, SourceError>(draft.commit()?)
    })
    .await?;
    Ok(Saved { tree, digest: digest.finish() })
}
