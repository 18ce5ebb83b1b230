//! The config that an image gets: layers, history and times filled in.
//!
//! As BuildKit's `exporter/containerimage` (`normalizeLayersAndHistory`, `patchImageConfig`), so that both give a build the same document.

use lapstrake_layerstore_oci::{DiffId, History, ImageConfig, Timestamp};
use time::OffsetDateTime;

use crate::ExportError;

/// A layer, for the history: what its tar stream is, and when it was made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct MadeLayer {
    pub(crate) diff_id: DiffId,
    pub(crate) created: OffsetDateTime,
}

/// Fills in what only the finished tree tells. The same layers give the same config, so that a build from cache alone ends in the same image.
///
/// `epoch` is the time of everything that has none yet; what came with the base image keeps its own.
pub(crate) fn finish(
    mut config: ImageConfig,
    layers: &[MadeLayer],
    epoch: Option<i64>,
) -> Result<ImageConfig, ExportError> {
    for (field, value) in [("os", &config.os), ("architecture", &config.architecture)] {
        if value.is_empty() {
            return Err(ExportError::Incomplete { field });
        }
    }
    let epoch = epoch.map(epoch_time).transpose()?;
    config.rootfs.kind = "layers".to_owned();
    config.rootfs.diff_ids = layers.iter().map(|layer| layer.diff_id.clone()).collect();
    if let Some(epoch) = &epoch {
        date_with(&mut config, epoch);
    }
    count_layers(&mut config.history, layers, epoch.as_ref());
    date_layers(&mut config.history, layers);
    date_rest(&mut config.history);
    if config.created.is_none() {
        config.created = config.history.iter().rev().find_map(|step| step.created.clone());
    }
    Ok(config)
}

fn epoch_time(seconds: i64) -> Result<Timestamp, ExportError> {
    let time = OffsetDateTime::from_unix_timestamp(seconds);
    time.map(Timestamp::from)
        .map_err(|_| ExportError::Incomplete { field: "a SOURCE_DATE_EPOCH within the calendar" })
}

/// Gives the epoch to what was made by this build.
fn date_with(config: &mut ImageConfig, epoch: &Timestamp) {
    for step in config.history.iter_mut().filter(|step| step.created.is_none()) {
        step.created = Some(epoch.clone());
    }
    let later = |created: &Timestamp| match (created.to_time(), epoch.to_time()) {
        (Ok(created), Ok(epoch)) => created > epoch,
        _ => true,
    };
    if config.created.as_ref().is_none_or(later) {
        config.created = Some(epoch.clone());
    }
}

/// Makes the steps that have a layer as many as there are layers.
fn count_layers(history: &mut Vec<History>, layers: &[MadeLayer], epoch: Option<&Timestamp>) {
    let mut told = 0;
    for step in history.iter_mut().filter(|step| !step.empty_layer) {
        // A frontend may say too much: what is there counts, from the bottom.
        if told == layers.len() {
            step.empty_layer = true;
        } else {
            told += 1;
        }
    }
    history.extend(layers.iter().skip(told).map(|layer| History {
        created: Some(epoch.cloned().unwrap_or_else(|| layer.created.into())),
        created_by: "created by buildkit".to_owned(),
        comment: "buildkit.exporter.image.v0".to_owned(),
        ..History::default()
    }));
}

fn date_layers(history: &mut [History], layers: &[MadeLayer]) {
    let steps = history.iter_mut().filter(|step| !step.empty_layer);
    for (step, layer) in steps.zip(layers) {
        step.created.get_or_insert_with(|| layer.created.into());
    }
}

/// Steps without a layer get the time of the first new layer if they come before it, else of the layer before them.
fn date_rest(history: &mut [History]) {
    let first_undated = history.iter().position(|step| step.created.is_none()).unwrap_or(history.len());
    let (dated, rest) = history.split_at(first_undated);
    let mut created = rest
        .iter()
        .find_map(|step| step.created.clone())
        .or_else(|| dated.iter().rev().find_map(|step| step.created.clone()));
    for step in &mut history[first_undated..] {
        match &step.created {
            Some(own) => created = Some(own.clone()),
            None => step.created = created.clone(),
        }
    }
}
