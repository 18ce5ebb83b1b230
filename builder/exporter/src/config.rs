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
/// `epoch` is the time of everything that has none yet, or a later one; what came with the base image keeps its own.
pub(crate) fn finish(
    mut config: ImageConfig,
    layers: &[MadeLayer],
    epoch: Option<i64>,
    base: Option<&ImageConfig>,
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
        date_with(&mut config, epoch, base);
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
fn date_with(config: &mut ImageConfig, epoch: &Timestamp, base: Option<&ImageConfig>) {
    let later = |created: &Timestamp| match (created.to_time(), epoch.to_time()) {
        (Ok(created), Ok(epoch)) => created > epoch,
        _ => true,
    };
    let of_base = base.map(|base| base.history.as_slice()).unwrap_or_default();
    let kept = config.history.iter().zip(of_base).take_while(|(step, base)| step == base).count();
    for step in &mut config.history[kept..] {
        if step.created.as_ref().is_none_or(later) {
            step.created = Some(epoch.clone());
        }
    }
    if config.created.as_ref().is_some_and(later) {
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

#[cfg(test)]
mod tests {
    use lapstrake_layerstore_oci::{Digest, Platform};

    use super::*;

    fn layer(second: i64) -> MadeLayer {
        MadeLayer {
            diff_id: DiffId(Digest::sha256_of(second.to_string())),
            created: OffsetDateTime::from_unix_timestamp(second).unwrap(),
        }
    }

    /// A step: `+` has a layer, `-` has none; the number is its time, if it has one.
    fn step(text: &str) -> History {
        let (kind, time) = text.split_at(1);
        let time = time.parse().ok().map(|time| OffsetDateTime::from_unix_timestamp(time).unwrap());
        History { created: time.map(Timestamp::from), empty_layer: kind == "-", ..History::default() }
    }

    fn shown(history: &[History]) -> Vec<String> {
        let time = |step: &History| match &step.created {
            Some(time) => time.to_time().unwrap().unix_timestamp().to_string(),
            None => String::new(),
        };
        history
            .iter()
            .map(|step| format!("{}{}", if step.empty_layer { "-" } else { "+" }, time(step)))
            .collect()
    }

    fn finished(steps: &[&str], layers: &[MadeLayer], epoch: Option<i64>) -> ImageConfig {
        let mut config = ImageConfig::for_platform(&Platform::new("linux", "amd64"));
        config.history = steps.iter().map(|text| step(text)).collect();
        let base = ImageConfig { history: config.history[..1].to_vec(), ..ImageConfig::default() };
        finish(config, layers, epoch, Some(&base)).unwrap()
    }

    #[test]
    fn steps_get_the_times_that_buildkit_gives_them() {
        for (steps, layers, expected) in [
            // The first step without a time gets that of the first layer after it.
            (&["+10", "-", "+", "-"][..], &[10, 20][..], &["+10", "-20", "+20", "-20"][..]),
            (&["+", "-", "+", "-"], &[10, 20], &["+10", "-20", "+20", "-20"]),
            // Nothing new but metadata: the time of the base image.
            (&["+10", "-10", "-", "-"], &[10], &["+10", "-10", "-10", "-10"]),
            // Nothing has a time.
            (&["-", "-"], &[], &["-", "-"]),
            // Later ones have the time of the layer before them.
            (&["-", "+", "-", "+", "-"], &[10, 20], &["-10", "+10", "-10", "+20", "-20"]),
        ] {
            let layers: Vec<MadeLayer> = layers.iter().map(|second| layer(*second)).collect();
            let config = finished(steps, &layers, None);
            assert_eq!(shown(&config.history), expected, "{steps:?}");
            assert_eq!(config.created, config.history.last().and_then(|step| step.created.clone()));
        }
    }

    #[test]
    fn as_many_steps_have_a_layer_as_there_are_layers() {
        let config = finished(&["+", "+", "+"], &[layer(10)], None);
        assert_eq!(shown(&config.history), ["+10", "-10", "-10"]);
        let config = finished(&["+"], &[layer(10), layer(20)], None);
        assert_eq!(shown(&config.history), ["+10", "+20"]);
        assert_eq!(config.history[1].comment, "buildkit.exporter.image.v0");
        assert_eq!(config.rootfs.diff_ids, [layer(10).diff_id, layer(20).diff_id]);
    }

    #[test]
    fn the_epoch_is_the_time_of_what_is_new() {
        let config = finished(&["+100", "-20", "-", "+", "-300"], &[layer(100), layer(200)], Some(50));
        // The base image keeps its own, though it is later; a frontend's does not.
        assert_eq!(shown(&config.history), ["+100", "-20", "-50", "+50", "-50"]);
        assert_eq!(config.created, Some(Timestamp::parse("1970-01-01T00:00:50Z").unwrap()));
    }

    #[test]
    fn an_epoch_after_the_last_day_is_refused() {
        let config = ImageConfig::for_platform(&Platform::new("linux", "amd64"));
        finish(config, &[], Some(i64::MAX), None).unwrap_err();
    }

    #[test]
    fn a_config_without_a_platform_is_refused() {
        let error = finish(ImageConfig::default(), &[], None, None).unwrap_err();
        assert_eq!(error.to_string(), "invalid image config for export: missing os");
    }
}
