//! `POST /images/prune`.

use lapstrake_api_types::{Filters, ImagePruneReport, Timestamp, parse_time};
use lapstrake_layerstore_oci::ImageConfig;

use super::delete::{Deletion, How};
use crate::{ApiError, ApiErrorKind, AppState};

const ACCEPTED: [&str; 4] = ["dangling", "label", "label!", "until"];

/// Removes dangling images, or (`dangling=false`) all: none is used by a container.
pub(super) fn prune(state: &AppState, filters: &Filters) -> Result<ImagePruneReport, ApiError> {
    filters.validate(&ACCEPTED)?;
    let dangling_only = filters.flag_or("dangling", true)?;
    let until = match filters.single("until", "more than one until filter specified")? {
        None => None,
        Some(text) => Some(
            parse_time(text, Timestamp::now())
                .map_err(|error| ApiError::invalid(format!("invalid value for 'until' filter: {error}")))?,
        ),
    };
    let images = &state.stores.images;
    let mut report = ImagePruneReport::default();
    let mut items = Vec::new();
    for record in images.list()? {
        // As of now: an earlier deletion of this prune may have taken it along, or its children.
        let Some(record) = images.get(&record.id)? else { continue };
        if record.names.is_empty() && !images.children(&record.id)?.is_empty() {
            continue;
        }
        if dangling_only && !record.is_dangling() {
            continue;
        }
        let Ok(config) = ImageConfig::from_json(&record.config) else { continue };
        let created = config.created.as_ref().and_then(|created| created.to_time().ok()).map(Timestamp);
        if until.is_some_and(|until| created.is_none_or(|created| created > until)) {
            continue;
        }
        if !filters.match_prune_labels(&config.config.labels) {
            continue;
        }
        let mut texts: Vec<String> = record.names.iter().map(|name| name.reference.to_string()).collect();
        if texts.is_empty() {
            texts.push(record.id.hex().to_owned());
        }
        for text in texts {
            // The image may have gone with an earlier name.
            let Some(record) = images.get(&record.id)? else { break };
            match Deletion::new(state).run(&record, &text, How { force: false, prune: true }) {
                Ok(deleted) => {
                    items.extend(deleted.items);
                    report.space_reclaimed += deleted.freed;
                }
                Err(error) if error.kind == ApiErrorKind::Conflict => {}
                Err(error) => tracing::warn!(image = text, %error, "image not pruned"),
            }
        }
    }
    report.images_deleted = (!items.is_empty()).then_some(items);
    Ok(report)
}
