//! Whether a result is for the platforms that were asked for. It is a matter of warnings: what was made is left behind.

use std::collections::{BTreeMap, BTreeSet};

use lapstrake_builder_progress::{Emit as _, Event, Progress, Warning};
use lapstrake_layerstore_oci::Platform;

use super::{FrontendResult, Target, result::Refs};
use crate::engine::internal_vertex;

/// The platforms that the client asks the frontend for, between commas; this machine's without it.
const PLATFORM: &str = "platform";

impl FrontendResult {
    /// Tells the client what there is to be said of its platforms, after these options of its frontend.
    pub(crate) fn verify(&self, options: &BTreeMap<String, String>, targets: &[Target], progress: &Progress) {
        let doubts = self.doubts(options, targets);
        if doubts.is_empty() {
            return;
        }
        let vertex = internal_vertex(progress, "verify platforms of the result");
        vertex.start();
        for doubt in doubts {
            progress.emit(&Event::Warning(Warning {
                vertex: vertex.digest(),
                level: 1,
                short: doubt.into_bytes(),
                detail: Vec::new(),
                url: String::new(),
                source: None,
                ranges: Vec::new(),
            }));
        }
        vertex.complete();
    }

    /// As BuildKit says it.
    fn doubts(&self, options: &BTreeMap<String, String>, targets: &[Target]) -> Vec<String> {
        // Also the answer to a question.
        if matches!(self.refs, Refs::One(None)) && !self.names_platforms() {
            return Vec::new();
        }
        let made = targets.iter().map(|target| target.platform.clone().normalized());
        doubts(options.get(PLATFORM).map(String::as_str), made.collect(), self.is_multi_platform())
    }
}

fn doubts(asked: Option<&str>, made: Vec<Platform>, is_multi_platform: bool) -> Vec<String> {
    let mut wanted = BTreeSet::new();
    let mut doubts = Vec::new();
    let mut only = Platform::host();
    match asked {
        None => _ = wanted.insert(only.to_full_string()),
        Some(asked) => {
            for text in asked.split(',') {
                match Platform::parse(text) {
                    Ok(platform) => only = platform.normalized(),
                    Err(error) => {
                        doubts.push(format!("Invalid platform result requested {text:?}: {error}"));
                        continue;
                    }
                }
                if !wanted.insert(only.to_full_string()) {
                    doubts.push(format!("Duplicate platform result requested {text:?}"));
                }
            }
        }
    }
    if !doubts.is_empty() {
        return doubts;
    }
    let all: BTreeSet<String> = made.iter().map(Platform::to_full_string).collect();
    if let ([one], 1) = (made.as_slice(), wanted.len()) {
        let mut one = one.clone();
        if only.os_version.is_empty() {
            // Who does not ask for a version has any.
            one.os_version = String::new();
        }
        if wanted.contains(&one.to_full_string()) {
            return doubts;
        }
        let text = asked.map_or_else(|| only.to_full_string(), str::to_owned);
        return vec![format!(
            "Requested platform {text:?} does not match result platform {:?}",
            made[0].to_full_string()
        )];
    }
    if !is_multi_platform && wanted.len() > 1 {
        return vec!["Multiple platforms requested but result is not multi-platform".to_owned()];
    }
    if wanted != all || wanted.len() != made.len() {
        let list = |all: &BTreeSet<String>| all.iter().cloned().collect::<Vec<_>>().join(",");
        let (wanted, all) = (list(&wanted), list(&all));
        doubts.push(format!("Requested platforms {wanted} do not match result platforms {all}"));
    }
    doubts
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn results_for_other_platforms_than_asked_for_are_doubted() {
        let of = |asked: &str, made: &[&str], multi| {
            let made = made.iter().map(|text| Platform::parse(text).unwrap().normalized()).collect();
            doubts(Some(asked), made, multi).join("; ")
        };
        assert_eq!(of("linux/amd64", &["linux/amd64"], false), "");
        assert_eq!(of("linux/arm64", &["linux/arm64/v8"], true), "");
        assert_eq!(
            of("linux/arm64", &["linux/amd64"], false),
            "Requested platform \"linux/arm64\" does not match result platform \"linux/amd64\""
        );
        assert_eq!(
            of("linux/amd64,linux/arm64", &["linux/amd64"], false),
            "Multiple platforms requested but result is not multi-platform"
        );
        assert_eq!(of("linux/amd64,linux/arm64", &["linux/arm64", "linux/amd64"], true), "");
        assert_eq!(
            of("linux/amd64", &["linux/amd64", "linux/arm64"], true),
            "Requested platforms linux/amd64 do not match result platforms linux/amd64,linux/arm64"
        );
        assert_eq!(
            of("linux/amd64,linux/amd64", &[], true),
            "Duplicate platform result requested \"linux/amd64\""
        );
        assert!(of("a/b/c/d", &[], true).starts_with("Invalid platform result requested \"a/b/c/d\": "));
        assert_eq!(doubts(None, vec![Platform::host()], false), Vec::<String>::new());
    }
}
