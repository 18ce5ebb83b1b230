//! Trees on top of each other, and what one has over another.

use lapstrake_layerstore_store::{Stores, Tree};

use crate::FilesError;

/// Lays trees on top of each other, the last one on top.
pub fn merge(_stores: &Stores, trees: &[Tree]) -> Result<Tree, FilesError> {
    Err(FilesError::Invalid { what: format!("{} trees", trees.len()) })
}

/// What `upper` has over `lower`.
pub fn diff(_stores: &Stores, lower: &Tree, upper: &Tree) -> Result<Tree, FilesError> {
    Err(FilesError::Invalid { what: format!("{lower:?} {upper:?}") })
}
