//! Actions of a file op.

use lapstrake_builder_llb::pb;
use lapstrake_layerstore_store::{Stores, Tree};
use tokio_util::sync::CancellationToken;

use crate::FilesError;

/// Runs the actions of a file op and gives its outputs. Blocks; ends with [`FilesError::Canceled`] soon after `cancel`.
pub fn apply(
    _stores: &Stores,
    op: &pb::FileOp,
    inputs: &[Tree],
    _cancel: &CancellationToken,
) -> Result<Vec<Tree>, FilesError> {
    Err(FilesError::Invalid { what: format!("{} actions on {} inputs", op.actions.len(), inputs.len()) })
}
