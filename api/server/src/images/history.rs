//! `GET /images/{name}/history`.

use lapstrake_api_types::{HistoryItem, Timestamp};
use lapstrake_layerstore_store::{ImageRecord, Stores};

use super::{LayerSizes, config, names, signed};
use crate::{ApiError, ApiErrorKind};

/// The steps of an image's making, newest first, with the ids of parent images that are here.
pub(super) fn history(stores: &Stores, record: ImageRecord) -> Result<Vec<HistoryItem>, ApiError> {
    let config = config(&record)?;
    let mut layers = LayerSizes::new(stores).of(&record.diff_ids)?.into_iter();
    let mut items = Vec::with_capacity(config.history.len());
    for step in config.history {
        let size = if step.empty_layer {
            0
        } else {
            let (_, size) = layers.next().ok_or_else(|| {
                ApiError::new(ApiErrorKind::Internal, "too many non-empty layers in History section")
            })?;
            size
        };
        items.push(HistoryItem {
            comment: step.comment,
            created: step
                .created
                .and_then(|time| time.to_time().ok())
                .map_or(0, |time| Timestamp(time).unix()),
            created_by: step.created_by,
            id: "<missing>".to_owned(),
            size: signed(size),
            tags: None,
        });
    }
    items.reverse();
    let mut image = Some(record);
    for item in &mut items {
        let Some(record) = image else { break };
        item.id = record.id.to_string();
        let (tags, _) = names(&record);
        item.tags = (!tags.is_empty()).then_some(tags);
        image = match &record.parent {
            Some(parent) => stores.images.get(parent)?,
            None => None,
        };
    }
    Ok(items)
}
