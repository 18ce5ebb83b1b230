//! Docker's `manifest.json`.

use lapstrake_layerstore_oci::{Digest, ImageId, Platform, PlatformMatcher, Reference};
use lapstrake_layerstore_store::Stores;
use serde::Deserialize;

use super::{Archive, MAX_DOCUMENT, Planned, PlannedLayer, config};
use crate::TransferError;

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Item {
    config: String,
    #[serde(default)]
    repo_tags: Option<Vec<String>>,
    #[serde(default)]
    layers: Option<Vec<String>>,
    #[serde(default)]
    parent: Option<String>,
}

/// What the archive's `manifest.json` says.
pub(super) fn plan(
    stores: &Stores,
    archive: &Archive,
    platforms: &[Platform],
) -> Result<Vec<Planned>, TransferError> {
    const NAME: &str = "manifest.json";
    let bytes = archive.get(NAME)?.document(stores, NAME, MAX_DOCUMENT)?;
    let items: Option<Vec<Item>> = serde_json::from_slice(&bytes)
        .map_err(|error| TransferError::archive(format!("failed to decode manifest.json: {error}")))?;
    let Some(items) = items else {
        return Err(TransferError::archive("invalid manifest, manifest cannot be null (but can be [])"));
    };
    let mut planned = Vec::with_capacity(items.len());
    for item in &items {
        if let Some(image) = image(stores, archive, item, platforms)? {
            planned.push(image);
        }
    }
    let ids: Vec<ImageId> = planned.iter().map(|image| image.id.clone()).collect();
    for image in &mut planned {
        // As Moby: a parent counts when it is in the same archive.
        let id = image.id.clone();
        image.parent = image.parent.take().filter(|parent| *parent != id && ids.contains(parent));
    }
    Ok(planned)
}

fn image(
    stores: &Stores,
    archive: &Archive,
    item: &Item,
    platforms: &[Platform],
) -> Result<Option<Planned>, TransferError> {
    let file = archive.get(&item.config)?;
    let bytes = file.document(stores, &item.config, MAX_DOCUMENT)?;
    let id = ImageId(Digest::sha256_of(&bytes));
    // Most writers name the config by its digest: then it must be that.
    let named = item.config.rsplit('/').next().unwrap_or_default();
    let named = named.strip_suffix(".json").unwrap_or(named);
    if let Ok(expected) = Digest::parse(&format!("sha256:{named}"))
        && expected != *id.digest()
    {
        return Err(TransferError::archive(format!("the config {} has the digest {id}", item.config)));
    }
    let layers = item.layers.as_deref().unwrap_or_default();
    let document = config(&id, &bytes, layers.len())?;
    let wanted = |platform: &Platform| PlatformMatcher::only(platform).matches(&document.platform());
    if !platforms.is_empty() && !platforms.iter().any(wanted) {
        return Ok(None);
    }
    let mut names = Vec::new();
    for tag in item.repo_tags.iter().flatten() {
        let name = Reference::parse(tag)
            .map_err(TransferError::document(format!("invalid archive: tag {tag:.256}")))?;
        if name.tag().is_none() {
            return Err(TransferError::archive(format!("invalid tag {tag:?}")));
        }
        names.push(name);
    }
    let layers = layers
        .iter()
        .zip(&document.rootfs.diff_ids)
        .map(|(path, diff_id)| {
            Ok(PlannedLayer { diff_id: diff_id.clone(), file: archive.get(path)?.clone() })
        })
        .collect::<Result<Vec<_>, TransferError>>()?;
    let parent = item.parent.as_deref().and_then(|parent| parent.parse().ok());
    Ok(Some(Planned { id, config: bytes, layers, names, parent, manifest: None }))
}
