//! `lapstrake df` and `lapstrake prune`: of a store that nobody has open, or through the daemon that has it.

use std::{
    collections::BTreeMap,
    time::{Duration, SystemTime},
};

use lapstrake_api_types::{Timestamp, parse_time};
use lapstrake_builder_cache::{BuildCache, EntryFilter, PruneBound, PruneRequest};
use lapstrake_layerstore_store::{StoreError, disk_usage_of_images};
use serde::Deserialize;

use crate::{
    assembly::OpenStore,
    cli::{DfArgs, PruneArgs},
    client::DaemonClient,
    error::ProgramError,
    host::Host,
    logging, rootless,
    settings::StoreSettings,
};

/// What is shown of a store. Bytes are of the disk.
#[derive(Debug, Default, PartialEq, Eq)]
struct Usage {
    images: usize,
    /// In images' layers, each counted once, and blobs.
    image_bytes: u64,
    entries: Vec<Entry>,
}

#[derive(Debug, PartialEq, Eq)]
struct Entry {
    id: String,
    kind: String,
    description: String,
    bytes: u64,
    is_shared: bool,
    is_in_use: bool,
}

/// Shows what the store takes.
pub(crate) fn df(args: &DfArgs) -> Result<(), ProgramError> {
    let settings = begin(&args.store)?;
    let usage = match open_store(&settings)? {
        Some(store) => {
            let disk = disk_usage_of_images(&store.stores)?;
            Usage {
                images: disk.images.len(),
                image_bytes: disk.of_images(),
                entries: entries(&store.cache)?,
            }
        }
        None => daemon(args.host.as_ref())?.usage()?,
    };
    crate::say(&table(&usage, args.verbose));
    Ok(())
}

/// Removes from the store what can be made again.
pub(crate) fn prune(args: &PruneArgs) -> Result<(), ProgramError> {
    let settings = begin(&args.store)?;
    let removed = match open_store(&settings)? {
        Some(store) => prune_store(&store, args)?,
        None => daemon(args.host.as_ref())?.prune(args)?,
    };
    crate::say(&removed.told(args));
    Ok(())
}

/// What went.
#[derive(Debug, Default)]
struct Removed {
    /// A line for each entry.
    entries: Vec<String>,
    images: usize,
    freed: u64,
}

impl Removed {
    fn told(&self, args: &PruneArgs) -> String {
        let mut text = String::new();
        if args.verbose {
            text.extend(self.entries.iter().flat_map(|entry| [entry, "\n"]));
        }
        text.push_str(&format!("Removed {} cache entries", self.entries.len()));
        if args.images {
            text.push_str(&format!(" and {} dangling images", self.images));
        }
        text.push_str(&format!("; freed {}\n", size(self.freed)));
        text
    }
}

pub(crate) fn begin(args: &crate::cli::StoreArgs) -> Result<StoreSettings, ProgramError> {
    let (mut settings, _) = StoreSettings::new(args)?;
    if settings.log_level == logging::LogLevel::Info {
        settings.log_level = logging::LogLevel::Error;
    }
    logging::start(settings.log_format, settings.log_level);
    Ok(settings)
}

/// `None` while a daemon has it open.
pub(crate) fn open_store(settings: &StoreSettings) -> Result<Option<OpenStore>, ProgramError> {
    if !settings.root.join("metadata.db").exists() {
        // Looking at a store does not make one.
        return Err(ProgramError::setting(settings.root.display().to_string(), "there is no store"));
    }
    // Its files belong to an ordinary user's subordinate ids as well.
    rootless::enter()?;
    match OpenStore::open(settings) {
        Ok(store) => Ok(Some(store)),
        Err(ProgramError::Store(StoreError::Locked { .. })) => Ok(None),
        Err(error) => Err(error),
    }
}

pub(crate) fn daemon(host: Option<&Host>) -> Result<DaemonClient, ProgramError> {
    DaemonClient::new(host.cloned().unwrap_or_else(Host::default_socket))
}

fn entries(cache: &BuildCache) -> Result<Vec<Entry>, ProgramError> {
    let entry = |entry: lapstrake_builder_cache::CacheEntry| Entry {
        id: entry.id,
        kind: entry.kind.as_str().to_owned(),
        description: entry.description,
        bytes: entry.size,
        is_shared: entry.shared,
        is_in_use: entry.in_use,
    };
    Ok(cache.usage()?.into_iter().map(entry).collect())
}

fn prune_store(store: &OpenStore, args: &PruneArgs) -> Result<Removed, ProgramError> {
    let mut images = 0;
    if args.images {
        for image in store.stores.images.list()?.iter().filter(|image| image.is_dangling()) {
            store.stores.images.delete_image(&image.id)?;
            images += 1;
        }
    }
    let filters = args.filters();
    let (ages, fields): (Vec<_>, Vec<_>) =
        filters.iter().map(|text| field(text)).partition(|(name, _)| AGES.contains(name));
    let request = PruneRequest {
        all: args.all,
        filter: EntryFilter::of_fields(fields)?,
        unused_for: unused_for(&ages)?,
        bound: args.bound(),
    };
    let pruned = store.cache.prune(&request)?;
    // Nobody has the store open but us: what earlier runs left goes as well.
    let collected = store.collector.collect_at_start(&store.metadata)?;
    let told = |entry: &lapstrake_builder_cache::CacheEntry| {
        format!("{}  {:>9}  {}", entry.id, size(entry.size), entry.description)
    };
    Ok(Removed { entries: pruned.entries.iter().map(told).collect(), images, freed: collected.bytes })
}

/// The filters that are about time rather than about what an entry is.
const AGES: [&str; 2] = ["until", "unused-for"];

/// `name=value`, or a name.
fn field(text: &str) -> (&str, Option<&str>) {
    text.split_once('=').map_or((text, None), |(name, value)| (name, Some(value)))
}

fn unused_for(ages: &[(&str, Option<&str>)]) -> Result<Option<Duration>, ProgramError> {
    let (name, value) = match ages {
        [] => return Ok(None),
        [(name, value)] => (name, value.unwrap_or_default()),
        [..] => return Err(ProgramError::setting("--filter until", "more than one")),
    };
    let now = Timestamp::now();
    let since = parse_time(value, now)
        .map_err(|why| ProgramError::setting(format!("--filter {name}={value}"), why.to_string()))?;
    Ok(Some(SystemTime::from(now.0).duration_since(SystemTime::from(since.0)).unwrap_or(Duration::ZERO)))
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase", default)]
#[derive(Default)]
struct DiskUsageAnswer {
    layers_size: u64,
    images: Option<Vec<serde::de::IgnoredAny>>,
    build_cache: Option<Vec<RecordAnswer>>,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "PascalCase", default)]
struct RecordAnswer {
    #[serde(rename = "ID")]
    id: String,
    #[serde(rename = "Type")]
    kind: String,
    description: String,
    in_use: bool,
    shared: bool,
    size: u64,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "PascalCase", default)]
struct PruneAnswer {
    caches_deleted: Option<Vec<String>>,
    images_deleted: Option<Vec<ImageAnswer>>,
    space_reclaimed: u64,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "PascalCase", default)]
struct ImageAnswer {
    deleted: String,
}

impl DaemonClient {
    fn usage(&self) -> Result<Usage, ProgramError> {
        // The layout of this version has everything at the top.
        let answer: DiskUsageAnswer = self.get("/v1.47/system/df")?;
        let entry = |record: RecordAnswer| Entry {
            id: record.id,
            kind: record.kind,
            description: record.description,
            bytes: record.size,
            is_shared: record.shared,
            is_in_use: record.in_use,
        };
        Ok(Usage {
            images: answer.images.unwrap_or_default().len(),
            image_bytes: answer.layers_size,
            entries: answer.build_cache.unwrap_or_default().into_iter().map(entry).collect(),
        })
    }

    fn prune(&self, args: &PruneArgs) -> Result<Removed, ProgramError> {
        let (mut freed, mut images) = (0, 0);
        if args.images {
            let answer: PruneAnswer = self.post("/v1.48/images/prune")?;
            freed += answer.space_reclaimed;
            let deleted = answer.images_deleted.unwrap_or_default();
            images = deleted.iter().filter(|image| !image.deleted.is_empty()).count();
        }
        let given = args.filters();
        let mut filters: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
        for (name, value) in given.iter().map(|text| field(text)) {
            filters.entry(name).or_default().extend(value);
        }
        let filters = serde_json::to_string(&filters).expect("strings are JSON");
        let PruneBound { reserved, max_used, min_free } = args.bound();
        let all = u8::from(args.all);
        let path = format!(
            "/v1.48/build/prune?all={all}&reserved-space={reserved}&max-used-space={max_used}&min-free-space={min_free}\
             &filters={}",
            escape(&filters)
        );
        let cache: PruneAnswer = self.post(&path)?;
        freed += cache.space_reclaimed;
        Ok(Removed { entries: cache.caches_deleted.unwrap_or_default(), images, freed })
    }
}

/// Percent-encodes everything but letters and digits.
pub(crate) fn escape(text: &str) -> String {
    let encode = |byte: u8| match byte {
        b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' => char::from(byte).to_string(),
        _ => format!("%{byte:02X}"),
    };
    text.bytes().map(encode).collect()
}

fn table(usage: &Usage, verbose: bool) -> String {
    let own: u64 = usage.entries.iter().filter(|entry| !entry.is_shared).map(|entry| entry.bytes).sum();
    let free: u64 = usage
        .entries
        .iter()
        .filter(|entry| !entry.is_shared && !entry.is_in_use)
        .map(|entry| entry.bytes)
        .sum();
    let mut out = String::from("TYPE          TOTAL       SIZE   RECLAIMABLE\n");
    out.push_str(&format!("images       {:6} {:>10}\n", usage.images, size(usage.image_bytes)));
    out.push_str(&format!("build cache  {:6} {:>10} {:>13}\n", usage.entries.len(), size(own), size(free)));
    if verbose {
        out.push_str("\nID            KIND                      SIZE  DESCRIPTION\n");
        for entry in &usage.entries {
            let id: String = entry.id.chars().take(12).collect();
            let mark = match (entry.is_in_use, entry.is_shared) {
                (true, _) => " (in use)",
                (_, true) => " (shared with an image)",
                _ => "",
            };
            let (kind, bytes) = (&entry.kind, size(entry.bytes));
            out.push_str(&format!("{id:12}  {kind:20} {bytes:>9}  {}{mark}\n", entry.description));
        }
    }
    out
}

/// Bytes for people, as docker writes them: powers of 1000, three or four digits.
fn size(bytes: u64) -> String {
    const UNITS: [&str; 7] = ["B", "kB", "MB", "GB", "TB", "PB", "EB"];
    let (mut value, mut unit) = (bytes as f64, 0);
    while value >= 1000.0 && unit < UNITS.len() - 1 {
        value /= 1000.0;
        unit += 1;
    }
    let digits = match unit {
        0 => 0,
        _ if value < 10.0 => 2,
        _ if value < 100.0 => 1,
        _ => 0,
    };
    format!("{value:.digits$}{}", UNITS[unit])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_have_three_digits() {
        for (bytes, text) in [
            (0, "0B"),
            (999, "999B"),
            (1000, "1.00kB"),
            (1_982_000, "1.98MB"),
            (45_000_000, "45.0MB"),
            (123_456_789_000, "123GB"),
        ] {
            assert_eq!(size(bytes), text);
        }
    }

    #[test]
    fn the_table_counts_what_the_cache_has_alone() {
        let entry = |bytes, is_shared, is_in_use| Entry {
            id: "abcdefghijklmnop".to_owned(),
            kind: "regular".to_owned(),
            description: "RUN true".to_owned(),
            bytes,
            is_shared,
            is_in_use,
        };
        let usage = Usage {
            images: 2,
            image_bytes: 1_500_000,
            entries: vec![entry(1000, false, false), entry(2000, true, false), entry(4000, false, true)],
        };
        let expected = "\
TYPE          TOTAL       SIZE   RECLAIMABLE
images            2     1.50MB
build cache       3     5.00kB        1.00kB

ID            KIND                      SIZE  DESCRIPTION
abcdefghijkl  regular                 1.00kB  RUN true
abcdefghijkl  regular                 2.00kB  RUN true (shared with an image)
abcdefghijkl  regular                 4.00kB  RUN true (in use)
";
        assert_eq!(table(&usage, true), expected);
    }

    #[test]
    fn filters_are_escaped() {
        assert_eq!(escape(r#"{"a":["b c"]}"#), "%7B%22a%22%3A%5B%22b%20c%22%5D%7D");
    }
}
