//! From a root file system's archive to an image of one layer.

use std::io::Read;

use lapstrake_layerstore_diff::{Limits, apply, decompress};
use lapstrake_layerstore_oci::{History, ImageConfig, ImageId, Timestamp};
use lapstrake_layerstore_store::{ImageName, NewImage, Stores, Tree};
use time::OffsetDateTime;
use tokio_util::sync::CancellationToken;

use crate::{TransferError, ahead::read_ahead, cancellable::Cancellable, layers};

/// Makes an image of a root file system's tar stream, plain or compressed, as `docker import` does. Blocks.
///
/// `config` says the platform and what a container runs; layers, history and times are filled in. `message` is the image's comment
/// (`Imported from -`). The layer is what lies unpacked here, written anew, so its diff id need not be the digest of the stream that came.
pub fn import(
    stores: &Stores,
    reader: impl Read + Send,
    mut config: ImageConfig,
    message: &str,
    names: Vec<ImageName>,
    cancel: &CancellationToken,
) -> Result<ImageId, TransferError> {
    let draft = stores.begin(&Tree::empty())?;
    let reader = Cancellable { inner: reader, cancel };
    let target = draft.diff()?;
    let unpacked = decompress(reader)
        .and_then(|plain| read_ahead(plain, |plain| apply(plain, &target, &Limits::default())));
    if cancel.is_cancelled() {
        return Err(TransferError::Canceled);
    }
    unpacked.map_err(TransferError::ReadArchive)?;
    let tree = draft.commit()?;
    let layers = layers(stores, &tree)?;
    let created = Timestamp::from(OffsetDateTime::now_utc());
    config.rootfs.kind = "layers".to_owned();
    config.rootfs.diff_ids = layers.iter().map(|layer| layer.diff_id.clone()).collect();
    config.created = Some(created.clone());
    config.comment = message.to_owned();
    config.history =
        vec![History { created: Some(created), comment: message.to_owned(), ..History::default() }];
    let bytes = config.to_json().map_err(TransferError::document("image config"))?;
    // The files are durable before the record that names them is.
    stores.snapshots.sync()?;
    Ok(stores.images.put(NewImage {
        config: bytes,
        top: tree.snapshot().cloned(),
        diff_ids: config.rootfs.diff_ids,
        parent: None,
        manifest: None,
        names,
    })?)
}
