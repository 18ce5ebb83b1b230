//! `GET /images/json`.

use std::collections::{HashMap, HashSet};

use lapstrake_api_types::{Filters, ImageSummary, Timestamp, parse_time};
use lapstrake_layerstore_oci::{ChainId, ImageConfig, ImageId, Reference};
use lapstrake_layerstore_store::{ImageRecord, Stores};

use super::{LayerSizes, config, find, glob, signed};
use crate::ApiError;

/// Filters that a list takes.
const ACCEPTED: [&str; 6] = ["dangling", "label", "before", "since", "reference", "until"];

/// What images must be to be listed.
struct Selection<'a> {
    filters: &'a Filters,
    dangling_only: bool,
    before: Option<Timestamp>,
    since: Option<Timestamp>,
    all: bool,
}

impl<'a> Selection<'a> {
    fn parse(stores: &Stores, filters: &'a Filters, all: bool) -> Result<Self, ApiError> {
        filters.validate(&ACCEPTED)?;
        let now = Timestamp::now();
        let created = |name: &str| Ok::<_, ApiError>(made(&config(&find(stores, name)?)?));
        // Several values mean all of them: the oldest for `before`, the newest for `since`.
        let mut before = None;
        for value in filters.get("before") {
            before = earlier(before, created(value)?);
        }
        for value in filters.get("until") {
            let until = parse_time(value, now)
                .map_err(|error| ApiError::invalid(format!("invalid value for 'until' filter: {error}")))?;
            before = earlier(before, Some(until));
        }
        let mut since = None;
        for value in filters.get("since") {
            since = since.max(created(value)?);
        }
        Ok(Self { filters, dangling_only: filters.flag_or("dangling", false)?, before, since, all })
    }

    /// Whether the image's own properties fit; its names are another matter.
    fn takes(&self, config: &ImageConfig) -> bool {
        let made = made(config);
        self.before.is_none_or(|before| made.is_some_and(|made| made < before))
            && self.since.is_none_or(|since| made.is_some_and(|made| made > since))
            && self.filters.match_labels("label", &config.config.labels)
    }

    /// The names to show, tags and digests; `None` when the image is not to be listed for its names.
    fn names(&self, record: &ImageRecord, has_children: bool) -> Result<Option<Shown>, ApiError> {
        let (mut tags, mut digests) = (Vec::new(), Vec::new());
        for name in record.names.iter().filter(|name| !name.is_nameless()) {
            if self.filters.contains("reference") && !self.matches(&name.reference)? {
                continue;
            }
            let list = if name.reference.digest().is_some() { &mut digests } else { &mut tags };
            list.push(name.reference.familiar());
        }
        if tags.is_empty() && digests.is_empty() {
            let hidden = (!self.all && has_children)
                || (self.filters.contains("dangling") && !self.dangling_only)
                || self.filters.contains("reference");
            return Ok((!hidden).then_some((tags, digests)));
        }
        if self.dangling_only && !tags.is_empty() {
            return Ok(None);
        }
        Ok(Some((tags, digests)))
    }

    /// As in Moby, a pattern may mean the familiar name or the full one, with or without tag.
    fn matches(&self, reference: &Reference) -> Result<bool, ApiError> {
        let targets = [
            reference.familiar(),
            reference.familiar_name(),
            reference.clone().with_default_tag().to_string(),
            reference.name(),
        ];
        for pattern in self.filters.get("reference") {
            for target in &targets {
                let matched = glob::matches(pattern, target)
                    .ok_or_else(|| ApiError::invalid(format!("syntax error in pattern {pattern:?}")))?;
                if matched {
                    return Ok(true);
                }
            }
        }
        Ok(false)
    }
}

/// Names to show: with a tag, and with a digest.
type Shown = (Vec<String>, Vec<String>);

fn earlier(a: Option<Timestamp>, b: Option<Timestamp>) -> Option<Timestamp> {
    match (a, b) {
        (Some(a), Some(b)) => Some(a.min(b)),
        (a, b) => a.or(b),
    }
}

fn made(config: &ImageConfig) -> Option<Timestamp> {
    config.created.as_ref().and_then(|created| created.to_time().ok()).map(Timestamp)
}

/// Images that fit, newest made first. `shared` counts what each has in common with others.
pub(crate) fn summaries(
    stores: &Stores,
    filters: &Filters,
    all: bool,
    shared: bool,
) -> Result<Vec<ImageSummary>, ApiError> {
    let selection = Selection::parse(stores, filters, all)?;
    let records = stores.images.list()?;
    let parents: HashSet<ImageId> = records.iter().filter_map(|record| record.parent.clone()).collect();
    let mut sizes = LayerSizes::new(stores);
    let mut uses: HashMap<ChainId, usize> = HashMap::new();
    if shared {
        for chain in records.iter().flat_map(|record| ChainId::all_of(&record.diff_ids)) {
            *uses.entry(chain).or_insert(0) += 1;
        }
    }
    let mut summaries = Vec::new();
    for record in &records {
        let has_children = parents.contains(&record.id);
        if selection.dangling_only && has_children {
            continue;
        }
        let config = match config(record) {
            Ok(config) => config,
            Err(error) => {
                // One bad document must not hide all other images.
                tracing::warn!(image = %record.id, %error, "an image's config cannot be read");
                continue;
            }
        };
        if !selection.takes(&config) {
            continue;
        }
        let Some((repo_tags, repo_digests)) = selection.names(record, has_children)? else { continue };
        let layers = sizes.of(&record.diff_ids)?;
        let common = layers.iter().filter(|(chain, _)| uses.get(chain).is_some_and(|uses| *uses > 1));
        summaries.push(ImageSummary {
            containers: 0,
            created: made(&config).map_or(0, Timestamp::unix),
            id: record.id.to_string(),
            labels: (!config.config.labels.is_empty()).then_some(config.config.labels),
            parent_id: record.parent.as_ref().map(ImageId::to_string).unwrap_or_default(),
            descriptor: None,
            repo_digests,
            repo_tags,
            shared_size: if shared { signed(common.map(|(_, size)| size).sum()) } else { -1 },
            size: signed(layers.iter().map(|(_, size)| size).sum()),
        });
    }
    // Stable: of those made in the same second, the newest stored comes first.
    summaries.sort_by_key(|summary| std::cmp::Reverse(summary.created));
    Ok(summaries)
}
