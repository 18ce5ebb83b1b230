//! `DELETE /images/{name}`, with Moby's meaning of names, ids and force (`daemon/images/image_delete.go`).

use lapstrake_api_types::{DeleteItem, EventAction};
use lapstrake_layerstore_oci::{ChainId, Digest, ImageId, Reference};
use lapstrake_layerstore_store::{ImageRecord, SnapshotName, StoreError};

use crate::{ApiError, AppState};

/// How far a deletion goes.
#[derive(Debug, Clone, Copy)]
pub(super) struct How {
    /// Also with several names.
    pub(super) force: bool,
    /// Also parents that nothing else needs.
    pub(super) prune: bool,
}

/// What a deletion did.
#[derive(Debug, Default)]
pub(super) struct Deleted {
    pub(super) items: Vec<DeleteItem>,
    /// Bytes freed on disk.
    pub(super) freed: u64,
}

/// One deletion, and what it did so far.
pub(super) struct Deletion<'a> {
    state: &'a AppState,
    done: Deleted,
}

impl<'a> Deletion<'a> {
    pub(super) fn new(state: &'a AppState) -> Self {
        Self { state, done: Deleted::default() }
    }

    /// Removes the name; or, when the image has no other and nobody needs it, the image. With an id, the image and its name.
    pub(super) fn run(mut self, record: &ImageRecord, text: &str, how: How) -> Result<Deleted, ApiError> {
        let names: Vec<&Reference> = record.names.iter().map(|name| &name.reference).collect();
        // The digest of an index or a manifest stands for the image, too.
        let is_id = is_id_prefix(&record.id, text) || Digest::parse(text).is_ok();
        if is_id {
            if has_one_repository(&names) {
                self.check_children(&record.id)?;
                self.untag_all(&record.id)?;
            }
        } else {
            let reference = Reference::parse(text).map_err(|error| ApiError::invalid(error.to_string()))?;
            if !self.untag(record, &reference.with_default_tag())? {
                return Ok(self.done);
            }
        }
        // After a name, what keeps the image is no error: the name was what the user asked about.
        self.delete(&record.id, how.force, how.prune, !is_id)?;
        Ok(self.done)
    }

    /// Removes a name, and the digested names of its repository when it was the last tag there. Whether none are left.
    fn untag(&mut self, record: &ImageRecord, name: &Reference) -> Result<bool, ApiError> {
        let id = &record.id;
        match self.state.stores.images.untag(name) {
            Ok(_) | Err(StoreError::NotFound { .. }) => {}
            Err(error) => return Err(error.into()),
        }
        self.tell(EventAction::Untag, id);
        self.done.items.push(DeleteItem::Untagged(name.familiar()));
        let mut left = self.names(id)?;
        let is_same = |other: &Reference| other.name() == name.name();
        let has_tag = left.iter().any(|other| other.digest().is_none() && is_same(other));
        if name.digest().is_none() && !has_tag {
            let (digests, others) =
                left.into_iter().partition(|other| other.digest().is_some() && is_same(other));
            for digest in Vec::<Reference>::into_iter(digests) {
                self.state.stores.images.untag(&digest)?;
                self.done.items.push(DeleteItem::Untagged(digest.familiar()));
            }
            left = others;
        }
        Ok(left.is_empty())
    }

    fn delete(&mut self, id: &ImageId, force: bool, prune: bool, quiet: bool) -> Result<(), ApiError> {
        let images = &self.state.stores.images;
        // Another request may have deleted it meanwhile: what was wanted is so.
        let Some(record) = images.get(id)? else { return Ok(()) };
        let has_children = !images.children(id)?.is_empty();
        let has_names = !record.names.is_empty();
        let conflict = if has_children {
            Some(conflict(id, "cannot be forced", "image has dependent child images"))
        } else if has_names && !force {
            Some(conflict(id, "must be forced", "image is referenced in multiple repositories"))
        } else {
            None
        };
        if let Some(conflict) = conflict {
            return if quiet { Ok(()) } else { Err(conflict) };
        }
        self.untag_all(id)?;
        let layers = self.layers(&record)?;
        match images.delete_image(id) {
            Ok(_) => {}
            Err(StoreError::InUse { .. }) if quiet => return Ok(()),
            Err(StoreError::InUse { by, .. }) => {
                return Err(conflict_of(id, &format!("image is being used by {by}")));
            }
            Err(StoreError::NotFound { .. }) => return Ok(()),
            Err(error) => return Err(error.into()),
        }
        self.state.events.tell_record(EventAction::Delete, id, id.as_str(), Some(&record));
        self.done.items.push(DeleteItem::Deleted(id.to_string()));
        let collected = self.state.collector.collect()?;
        self.done.freed += collected.bytes;
        for (snapshot, chain) in layers.into_iter().rev() {
            if collected.snapshots.contains(&snapshot) {
                self.done.items.push(DeleteItem::Deleted(chain.to_string()));
            }
        }
        match record.parent {
            Some(parent) if prune => self.delete(&parent, false, true, true),
            _ => Ok(()),
        }
    }

    fn check_children(&self, id: &ImageId) -> Result<(), ApiError> {
        if self.state.stores.images.children(id)?.is_empty() {
            return Ok(());
        }
        Err(conflict(id, "cannot be forced", "image has dependent child images"))
    }

    fn untag_all(&mut self, id: &ImageId) -> Result<(), ApiError> {
        for name in self.names(id)? {
            match self.state.stores.images.untag(&name) {
                Ok(_) | Err(StoreError::NotFound { .. }) => {}
                Err(error) => return Err(error.into()),
            }
            self.tell(EventAction::Untag, id);
            self.done.items.push(DeleteItem::Untagged(name.familiar()));
        }
        Ok(())
    }

    fn names(&self, id: &ImageId) -> Result<Vec<Reference>, ApiError> {
        let record = self.state.stores.images.get(id)?;
        Ok(record.into_iter().flat_map(|record| record.names).map(|name| name.reference).collect())
    }

    /// The image's layers that are known here, bottom first.
    fn layers(&self, record: &ImageRecord) -> Result<Vec<(SnapshotName, ChainId)>, ApiError> {
        let mut layers = Vec::with_capacity(record.diff_ids.len());
        for chain in ChainId::all_of(&record.diff_ids) {
            if let Some(layer) = self.state.stores.layers.by_chain(&chain)? {
                layers.push((layer.snapshot, chain));
            }
        }
        Ok(layers)
    }

    fn tell(&self, action: EventAction, id: &ImageId) {
        self.state.events.tell_image(&self.state.stores, action, id, id.as_str());
    }
}

fn conflict(id: &ImageId, force: &str, why: &str) -> ApiError {
    ApiError::conflict(format!("conflict: unable to delete {} ({force}) - {why}", id.short()))
}

fn conflict_of(id: &ImageId, why: &str) -> ApiError {
    conflict(id, "cannot be forced", why)
}

/// Whether the text that found the image is (the beginning of) its id.
fn is_id_prefix(id: &ImageId, text: &str) -> bool {
    id.as_str().starts_with(text) || id.hex().starts_with(text)
}

/// Whether all names are of one repository and at most one is a tag; not so when there are none.
fn has_one_repository(names: &[&Reference]) -> bool {
    let Some(first) = names.first() else { return false };
    let tags = names.iter().filter(|name| name.digest().is_none()).count();
    tags <= 1 && names.iter().all(|name| name.name() == first.name())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_repository_has_at_most_one_tag() {
        let digest = "sha256:0123456789012345678901234567890123456789012345678901234567890123";
        let one = |names: &[&str]| {
            let names: Vec<Reference> = names.iter().map(|name| Reference::parse(name).unwrap()).collect();
            has_one_repository(&names.iter().collect::<Vec<_>>())
        };
        assert!(!one(&[]));
        assert!(one(&["a:1"]));
        assert!(!one(&["a:1", "a:2"]));
        assert!(one(&["a:1", &format!("a@{digest}")]));
        assert!(!one(&["a:1", &format!("b@{digest}")]));
        assert!(one(&[&format!("a@{digest}")]));
    }
}
