//! `rewrite-timestamp`: the same layers, with no file younger than `SOURCE_DATE_EPOCH`.
//!
//! Each layer above the base image's becomes a snapshot of its own, so that what is stored, packed and sent is a tree like any other. Those of the base are
//! not touched (BuildKit's `rewriteRemoteWithEpoch`), so that they stay the layers that others have.

use std::io::{self, BufReader, BufWriter};

use lapstrake_builder_progress::VertexHandle;
use lapstrake_layerstore_diff::{Limits, WriteOptions, apply, write_layer};
use lapstrake_layerstore_store::{Layer, Stores, Tree};
use lapstrake_layerstore_transfer::layers;
use time::OffsetDateTime;
use tokio_util::sync::CancellationToken;

use crate::{
    ExportError, PlatformResult,
    stream::{Cancellable, canceled_or},
};

const BUFFER: usize = 256 << 10;

/// Says of a layer in a manifest that its files' times were rewritten, and to what.
pub(crate) const REWRITTEN: &str = "buildkit/rewritten-timestamp";

/// How many of a result's layers are its base's, which are not touched.
pub(crate) fn layers_of_base(result: &PlatformResult, all: &[Layer]) -> usize {
    let base = result.base.as_ref().map(|base| base.rootfs.diff_ids.as_slice()).unwrap_or_default();
    all.iter().zip(base).take_while(|(layer, base)| layer.diff_id == **base).count()
}

/// Makes the result's tree one of such layers, and returns them. Blocks.
pub(crate) fn rewritten(
    stores: &Stores,
    result: &mut PlatformResult,
    all: Vec<Layer>,
    epoch: i64,
    vertex: &VertexHandle,
    cancel: &CancellationToken,
) -> Result<Vec<Layer>, ExportError> {
    let kept = layers_of_base(result, &all);
    if kept == all.len() {
        return Ok(all);
    }
    let time = OffsetDateTime::from_unix_timestamp(epoch)
        .map_or_else(|_| String::new(), |time| format!(" ({time})"));
    let part = vertex.part(format!("rewriting layers with source-date-epoch {epoch}{time}"), "", 0);
    let mut tree = match all[..kept].last() {
        None => Tree::empty(),
        Some(top) => stores
            .hold(&top.snapshot)?
            .ok_or_else(|| lapstrake_layerstore_store::StoreError::not_found("snapshot", &top.snapshot))?,
    };
    for layer in &all[kept..] {
        tree = rewrite(stores, &tree, layer, epoch, cancel)?;
    }
    part.done();
    // What they are is read from the new snapshots, not from what was written to them: so it is right whatever a file system made of it.
    let layers = layers(stores, &tree)?;
    result.tree = tree;
    Ok(layers)
}

fn rewrite(
    stores: &Stores,
    below: &Tree,
    layer: &Layer,
    epoch: i64,
    cancel: &CancellationToken,
) -> Result<Tree, ExportError> {
    let draft = stores.begin(below)?;
    let (target, source) = (draft.diff()?, stores.snapshots.diff_source(&layer.snapshot)?);
    let (reader, writer) = io::pipe().map_err(ExportError::io("open a pipe for", "a layer"))?;
    let options = WriteOptions { latest_mtime: Some(epoch), ..WriteOptions::default() };
    let applied = std::thread::scope(|scope| {
        let writing = scope.spawn(|| {
            let out = Cancellable { out: BufWriter::with_capacity(BUFFER, writer), cancel };
            write_layer(&source, &options, out)
        });
        let applied = apply(BufReader::with_capacity(BUFFER, reader), &target, &Limits::default());
        // Its reader is gone by now, so the writer ends.
        let written = match writing.join() {
            Ok(written) => written,
            Err(panic) => std::panic::resume_unwind(panic),
        };
        applied?;
        written?;
        Ok(())
    });
    canceled_or(applied, cancel)?;
    Ok(draft.commit()?)
}
