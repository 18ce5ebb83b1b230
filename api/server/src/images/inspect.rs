//! `GET /images/{name}/json`.

use std::collections::BTreeMap;

use lapstrake_api_types::{DriverData, ImageInspect, ImageMetadata, InspectRootFs, Timestamp};
use lapstrake_layerstore_store::{DiffSource, ImageRecord, Stores};

use super::{LayerSizes, config, names, signed};
use crate::ApiError;

/// Go's zero time, for an image that never had a name.
const NEVER: &str = "0001-01-01T00:00:00Z";

pub(super) fn inspect(stores: &Stores, driver: &str, record: &ImageRecord) -> Result<ImageInspect, ApiError> {
    let config = config(record)?;
    let layers = LayerSizes::new(stores).of(&record.diff_ids)?;
    let (repo_tags, repo_digests) = names(record);
    let comment = match config.history.last() {
        Some(last) if config.comment.is_empty() => last.comment.clone(),
        _ => config.comment.clone(),
    };
    Ok(ImageInspect {
        id: record.id.to_string(),
        repo_tags,
        repo_digests,
        parent: record.parent.as_ref().map(ToString::to_string).unwrap_or_default(),
        comment,
        created: config.created.as_ref().map(|created| created.as_str().to_owned()),
        container: config.container.clone(),
        container_config: config.container_config.clone(),
        docker_version: config.docker_version.clone(),
        author: config.author.clone(),
        architecture: config.architecture.clone(),
        variant: config.variant.clone(),
        os: if config.os.is_empty() { "linux".to_owned() } else { config.os.clone() },
        os_version: config.os_version.clone(),
        size: signed(layers.iter().map(|(_, size)| size).sum()),
        graph_driver: DriverData { data: directories(stores, record)?, name: driver.to_owned() },
        root_fs: InspectRootFs {
            kind: "layers".to_owned(),
            layers: record.diff_ids.iter().map(ToString::to_string).collect(),
        },
        metadata: ImageMetadata {
            last_tag_time: record
                .last_tagged
                .map_or_else(|| NEVER.to_owned(), |time| Timestamp::from(time).rfc3339()),
        },
        descriptor: None,
        config: config.config,
    })
}

/// Where the top layer is, in the words of Moby's drivers: overlay2 names its directories, vfs nothing.
fn directories(stores: &Stores, record: &ImageRecord) -> Result<Option<BTreeMap<String, String>>, ApiError> {
    let Some(top) = &record.top else { return Ok(None) };
    let DiffSource::OverlayUpper { upper, lower, .. } = stores.snapshots.diff_source(top)? else {
        return Ok(None);
    };
    let mut data = BTreeMap::new();
    if let Some(home) = upper.parent() {
        data.insert("MergedDir".to_owned(), home.join("merged").display().to_string());
        data.insert("WorkDir".to_owned(), home.join("work").display().to_string());
    }
    if !lower.is_empty() {
        let lower: Vec<String> = lower.iter().map(|path| path.display().to_string()).collect();
        data.insert("LowerDir".to_owned(), lower.join(":"));
    }
    data.insert("UpperDir".to_owned(), upper.display().to_string());
    Ok(Some(data))
}
