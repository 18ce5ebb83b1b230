//! Policies of automatic pruning: `buildkitd.toml`'s rules, and BuildKit's defaults.
//!
//! ```text
//!   [worker.oci] reservedSpace, maxUsedSpace, minFreeSpace ─► GcCaps ─► default_rules ┐
//!   [[worker.oci.gcpolicy]] ─────────────────────────────────────────► GcRule ────────┴─► requests ─► BuildCache::gc
//! ```
//!
//! Rules are applied in order, each to what those before it left. All of them look at the size of the whole cache, whatever they filter.

use std::time::Duration;

use crate::{BuildCache, CacheError, EntryFilter, PruneBound, PruneRequest, Pruned};

/// Space on a disk, as configured.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DiskSpace {
    /// So many bytes.
    Bytes(u64),
    /// So many hundredths of the disk.
    Percent(u8),
}

impl Default for DiskSpace {
    /// Nothing said.
    fn default() -> Self {
        Self::Bytes(0)
    }
}

impl DiskSpace {
    /// Reads `512MB`, `10GB`, `1.5g`, `1000000` or `10%`. Units are powers of 1024, as in BuildKit and Docker.
    pub fn parse(text: &str) -> Result<Self, CacheError> {
        let wrong = |why: &str| CacheError::Space { text: text.to_owned(), why: why.to_owned() };
        let text = text.trim();
        if text.is_empty() {
            return Ok(Self::default());
        }
        if let Some(percent) = text.strip_suffix('%') {
            let percent: u8 = percent.parse().map_err(|_| wrong("not a whole number of percent"))?;
            return if percent <= 100 {
                Ok(Self::Percent(percent))
            } else {
                Err(wrong("more than the whole disk"))
            };
        }
        let lower = text.to_ascii_lowercase();
        let (number, unit) =
            lower.split_at(lower.find(|c: char| c.is_ascii_alphabetic()).unwrap_or(lower.len()));
        let number = number.trim_end();
        let shift = match unit {
            "" | "b" => 0,
            "k" | "kb" | "ki" | "kib" => 10,
            "m" | "mb" | "mi" | "mib" => 20,
            "g" | "gb" | "gi" | "gib" => 30,
            "t" | "tb" | "ti" | "tib" => 40,
            "p" | "pb" | "pi" | "pib" => 50,
            _ => return Err(wrong("units are B, kB, MB, GB, TB, PB, and %")),
        };
        let is_number =
            !number.is_empty() && number.bytes().all(|byte| byte.is_ascii_digit() || byte == b'.');
        let amount = number.parse::<f64>().ok().filter(|_| is_number);
        let amount = amount.ok_or_else(|| wrong("not a size such as 512MB, or a share such as 10%"))?;
        let bytes = amount * (1u64 << shift) as f64;
        if bytes > i64::MAX as f64 {
            return Err(wrong("larger than any disk"));
        }
        // What a fraction of a byte was is cut off.
        Ok(Self::Bytes(bytes as u64))
    }

    /// In bytes, on a disk of this size. A share is rounded up to whole billions, as in BuildKit.
    fn on(self, disk: u64) -> u64 {
        match self {
            Self::Bytes(bytes) => bytes,
            Self::Percent(0) => 0,
            Self::Percent(percent) => {
                let share = disk / 100 * u64::from(percent) + disk % 100 * u64::from(percent) / 100;
                ((share >> 30) + 1).saturating_mul(1_000_000_000)
            }
        }
    }
}

/// The three bounds of the cache as a whole.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct GcCaps {
    /// What may stay whatever else is said.
    pub reserved: DiskSpace,
    /// What the cache may take at most.
    pub max_used: DiskSpace,
    /// What of the disk is to be free.
    pub min_free: DiskSpace,
}

impl GcCaps {
    /// BuildKit's, for a disk of this size: a tenth of it or 10 GB is reserved, four fifths or 100 GB may be used, a fifth is to be free.
    fn default_for(disk: u64) -> Self {
        let at_most = |percent, bytes| match DiskSpace::Percent(percent).on(disk) > bytes {
            true => DiskSpace::Bytes(bytes),
            false => DiskSpace::Percent(percent),
        };
        Self {
            reserved: at_most(10, 10_000_000_000),
            max_used: at_most(80, 100_000_000_000),
            min_free: DiskSpace::Percent(20),
        }
    }
}

/// One rule.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct GcRule {
    /// Also entries that an image shares, and the daemon's own.
    pub all: bool,
    /// Only these.
    pub filter: EntryFilter,
    /// Only those not used for this long.
    pub keep_duration: Duration,
    /// When to stop.
    pub caps: GcCaps,
}

impl GcRule {
    /// What is to be pruned by it on a disk of this size.
    pub fn request(&self, disk: u64) -> PruneRequest {
        PruneRequest {
            all: self.all,
            filter: self.filter.clone(),
            unused_for: (!self.keep_duration.is_zero()).then_some(self.keep_duration),
            bound: PruneBound {
                reserved: self.caps.reserved.on(disk),
                max_used: self.caps.max_used.on(disk),
                min_free: self.caps.min_free.on(disk),
            },
        }
    }
}

/// BuildKit's rules where none are configured (`DefaultGCPolicy`), for a disk of this size.
///
/// First what is easily got again and was not used for two days, when the cache is larger than 512 MB; then, above the caps, what was not used for 60
/// days; then anything; and last what images share and the daemon's own.
pub fn default_rules(caps: GcCaps, disk: u64) -> Result<Vec<GcRule>, CacheError> {
    const DAY: Duration = Duration::from_secs(24 * 60 * 60);
    let caps = if caps == GcCaps::default() { GcCaps::default_for(disk) } else { caps };
    let easily = ["type==source.local", "type==exec.cachemount", "type==source.git.checkout"];
    Ok(vec![
        GcRule {
            filter: EntryFilter::parse(&easily)?,
            keep_duration: 2 * DAY,
            caps: GcCaps { max_used: DiskSpace::Bytes(512_000_000), ..GcCaps::default() },
            ..GcRule::default()
        },
        GcRule { keep_duration: 60 * DAY, caps, ..GcRule::default() },
        GcRule { caps, ..GcRule::default() },
        GcRule { all: true, caps, ..GcRule::default() },
    ])
}

impl BuildCache {
    /// Applies rules in order, as one [`Self::prune`] for each would, but measures the cache once. Run the collector afterwards. Blocks.
    pub fn gc(&self, rules: &[PruneRequest]) -> Result<Pruned, CacheError> {
        self.forget(rules)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spaces_are_bytes_units_or_shares() {
        for (text, space) in [
            ("", DiskSpace::Bytes(0)),
            ("1000", DiskSpace::Bytes(1000)),
            ("512MB", DiskSpace::Bytes(512 << 20)),
            ("1.5 GiB", DiskSpace::Bytes(3 << 29)),
            ("2g", DiskSpace::Bytes(2 << 30)),
            ("10%", DiskSpace::Percent(10)),
        ] {
            assert_eq!(DiskSpace::parse(text).unwrap(), space, "{text}");
        }
        for bad in ["-1", "x", "1x", "101%", "-1%", "1.5%", "nan", "inf", "1e3", "9999999PB", "GB", "1..2"] {
            let error = DiskSpace::parse(bad).unwrap_err().to_string();
            assert!(error.contains(bad), "{bad}: {error}");
        }
    }

    #[test]
    fn shares_are_rounded_up_as_buildkit_does() {
        assert_eq!(DiskSpace::Percent(10).on(1_000_000_000_000), 94_000_000_000);
        assert_eq!(DiskSpace::Percent(0).on(1 << 40), 0);
        assert_eq!(
            DiskSpace::Percent(100).on(u64::MAX),
            ((u64::MAX >> 30) + 1).saturating_mul(1_000_000_000)
        );
    }

    #[test]
    fn the_default_rules_are_buildkits() {
        let bounds = |caps, disk| {
            let rules = default_rules(caps, disk).unwrap();
            rules.iter().map(|rule| rule.request(disk)).collect::<Vec<_>>()
        };
        let large = bounds(GcCaps::default(), 1_000_000_000_000);
        assert_eq!(large.len(), 4);
        assert_eq!(large[0].bound, PruneBound { max_used: 512_000_000, ..PruneBound::default() });
        assert_eq!(large[0].unused_for, Some(Duration::from_secs(48 * 3600)));
        let caps =
            PruneBound { reserved: 10_000_000_000, max_used: 100_000_000_000, min_free: 187_000_000_000 };
        assert_eq!((large[1].bound, large[2].bound, large[3].bound), (caps, caps, caps));
        assert_eq!(large.iter().map(|rule| rule.all).collect::<Vec<_>>(), [false, false, false, true]);
        assert_eq!(large[1].unused_for, Some(Duration::from_secs(60 * 24 * 3600)));
        assert_eq!((large[2].unused_for, large[3].unused_for), (None, None));
        // A small disk: shares of it.
        let small = bounds(GcCaps::default(), 20 << 30);
        assert_eq!(
            small[2].bound,
            PruneBound { reserved: 3_000_000_000, max_used: 17_000_000_000, min_free: 5_000_000_000 }
        );
        // One cap that is configured stands alone.
        let capped = GcCaps { reserved: DiskSpace::Bytes(7), ..GcCaps::default() };
        assert_eq!(bounds(capped, 1 << 40)[3].bound, PruneBound { reserved: 7, ..PruneBound::default() });
    }
}
