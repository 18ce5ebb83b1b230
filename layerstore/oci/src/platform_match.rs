//! Which platforms a machine can run, best first, with containerd's rules.

use std::cmp::Ordering;

use crate::{Descriptor, Platform};

/// Accepts platforms and ranks them: the first entry of its list that accepts a platform is that platform's rank.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PlatformMatcher {
    accepted: Vec<Platform>,
}

impl PlatformMatcher {
    /// What a machine of this platform can run: `arm/v7` also `v6` and `v5`, `arm64` also 32-bit arm, `amd64/v3`
    /// also `v2`, `v1` and `386`. As containerd's `platforms.Only`.
    pub fn only(platform: &Platform) -> PlatformMatcher {
        PlatformMatcher::ordered(runnable(&platform.normalized()))
    }

    /// Exactly this platform. As containerd's `platforms.OnlyStrict`.
    pub fn strict(platform: &Platform) -> PlatformMatcher {
        PlatformMatcher::ordered([platform.clone()])
    }

    /// The given platforms, best first.
    pub fn ordered(platforms: impl IntoIterator<Item = Platform>) -> PlatformMatcher {
        PlatformMatcher { accepted: platforms.into_iter().map(|p| p.normalized()).collect() }
    }

    /// Whether the platform is accepted.
    pub fn matches(&self, platform: &Platform) -> bool {
        self.rank(&platform.normalized()).is_some()
    }

    /// Orders two platforms, the better first (`Less` = better). Among equals, the one that asks for more OS
    /// features is the better; unaccepted platforms come last.
    pub fn compare(&self, a: &Platform, b: &Platform) -> Ordering {
        let (a, b) = (a.normalized(), b.normalized());
        let rank = |p: &Platform| self.rank(p).unwrap_or(usize::MAX);
        rank(&a).cmp(&rank(&b)).then_with(|| b.os_features.len().cmp(&a.os_features.len()))
    }

    /// The best accepted descriptor of an index, the first of equals. Descriptors without a platform, and
    /// BuildKit's attestations (`unknown/unknown`), are passed over.
    pub fn choose<'a>(&self, manifests: &'a [Descriptor]) -> Option<&'a Descriptor> {
        manifests
            .iter()
            .filter_map(|d| d.platform.as_ref().filter(|p| self.matches(p)).map(|p| (d, p)))
            // `min_by` keeps the first of equals.
            .min_by(|a, b| self.compare(a.1, b.1))
            .map(|(d, _)| d)
    }

    fn rank(&self, normalized: &Platform) -> Option<usize> {
        self.accepted.iter().position(|m| accepts(m, normalized))
    }
}

fn accepts(m: &Platform, p: &Platform) -> bool {
    if m.os != p.os || m.architecture != p.architecture || m.variant != p.variant {
        return false;
    }
    // A Windows matcher looks at the build number, and not at features.
    if m.os == "windows" {
        return windows_version_fits(&m.os_version, &p.os_version);
    }
    p.os_features.iter().all(|f| m.os_features.contains(f))
}

/// Every platform that code for `p` (normalised) can be replaced by, best first.
fn runnable(p: &Platform) -> Vec<Platform> {
    let with = |arch: &str, variant: String| Platform {
        architecture: arch.to_owned(),
        variant,
        os: p.os.clone(),
        os_version: p.os_version.clone(),
        os_features: p.os_features.clone(),
    };
    let number = |v: &str| v.strip_prefix('v').unwrap_or(v).parse::<u8>().ok();
    match p.architecture.as_str() {
        "amd64" => {
            let mut all = vec![p.clone()];
            if let Some(n) = number(&p.variant) {
                all.extend((1..n).rev().map(|v| with("amd64", format!("v{v}"))));
            }
            all.push(with("386", String::new()));
            all
        }
        "arm" => {
            let mut all = vec![p.clone()];
            if let Some(n) = number(&p.variant) {
                all.extend((5..n).rev().map(|v| with("arm", format!("v{v}"))));
            }
            all
        }
        "arm64" => {
            let variant = if p.variant.is_empty() { "v8" } else { &p.variant };
            let mut all: Vec<Platform> = arm64_versions(variant)
                .into_iter()
                .map(|(major, minor)| {
                    let v = if minor == 0 { format!("v{major}") } else { format!("v{major}.{minor}") };
                    with("arm64", v)
                })
                .collect();
            if all.is_empty() {
                all.push(p.clone());
            }
            // 64-bit Arm v8 and v9 run 32-bit Arm v8 and below.
            let arm32 = if variant.starts_with("v8") || variant.starts_with("v9") { "v8" } else { variant };
            all.extend(runnable(&with("arm", arm32.to_owned())));
            all
        }
        _ => vec![p.clone()],
    }
}

/// The arm64 versions that `variant` includes, highest first: v9.x contains v8.(x+5), up to v8.9.
fn arm64_versions(variant: &str) -> Vec<(u8, u8)> {
    let Some(v) = variant.strip_prefix('v') else { return Vec::new() };
    let (major, minor) = match v.split_once('.') {
        None => (v, "0"),
        Some(parts) => parts,
    };
    let minor = match minor.parse::<u8>() {
        Ok(m) if minor.len() == 1 => m,
        _ => return Vec::new(),
    };
    match major {
        "8" if minor <= 9 => (0..=minor).rev().map(|m| (8, m)).collect(),
        "9" if minor <= 7 => {
            let below = (minor + 5).min(9);
            (0..=minor).rev().map(|m| (9, m)).chain((0..=below).rev().map(|m| (8, m))).collect()
        }
        _ => Vec::new(),
    }
}

/// Windows host and container builds, by Microsoft's compatibility rule as containerd applies it: before Server
/// 2022 builds must be equal; from then on any container between the last LTSC release and the host runs.
fn windows_version_fits(host: &str, container: &str) -> bool {
    const LTSC: [u16; 2] = [20348, 26100];
    let Some(h) = windows_version(host) else { return true };
    if container.is_empty() {
        return true;
    }
    let c = windows_version(container).unwrap_or_default();
    if (h.0, h.1) != (c.0, c.1) {
        return false;
    }
    if h.2 < LTSC[0] {
        return h.2 == c.2;
    }
    let oldest = LTSC.into_iter().rev().find(|l| h.2 > *l).unwrap_or(LTSC[0]);
    (oldest..=h.2).contains(&c.2)
}

fn windows_version(v: &str) -> Option<(u8, u8, u16)> {
    let mut parts = v.split('.');
    let version = (parts.next()?.parse().ok()?, parts.next()?.parse().ok()?, parts.next()?.parse().ok()?);
    (version != (0, 0, 0)).then_some(version)
}
