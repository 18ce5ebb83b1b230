//! What is attested of what a build made, where its client asks for it: how it came to be (provenance), and what is in it (a bill of materials).
//!
//! ```text
//!   Trail ─ Capture ─► Provenance ─► SLSA v0.2 │ v1 ─┐
//!   scanner's image ─► its scan, a tree ─────────────┼─► Attestation ─► exporter: statements about each image
//!   what a frontend gives ───────────────────────────┘
//! ```
//!
//! Nothing is attested that nobody asked for. `mode=min` tells neither build-args nor labels nor names of secrets; no mode tells values of secrets or
//! credentials of URLs.

mod capture;
mod predicate;
mod producers;
mod provenance;
mod purl;
mod sbom;
mod steps;
mod trail;

use std::collections::{BTreeMap, BTreeSet};

use lapstrake_builder_dockerfile::options::{PROVENANCE, SBOM, attests};
use lapstrake_builder_dockerfile::{Dialect, DockerfileOptions};
use lapstrake_builder_exporter::Attestation;
use lapstrake_layerstore_oci::{Platform, Timestamp};
use lapstrake_layerstore_store::SnapshotKey;
use time::OffsetDateTime;

pub(crate) use self::{
    capture::Capture,
    producers::Producers,
    provenance::{Maker, Order as ProvenanceOrder, Times},
    sbom::ScannerOrder,
    trail::{Asked, Trail},
};
use crate::{EngineError, FrontendResult, Input, bridge::Target, graphs::BuildKeys, recorded};

/// What a client wants to be attested.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct Attests {
    pub(crate) provenance: Option<ProvenanceOrder>,
    pub(crate) sbom: Option<ScannerOrder>,
}

impl Attests {
    /// What a request asks for. Refuses what is not understood before anything is built.
    pub(crate) fn of(input: &Input) -> Result<Self, EngineError> {
        // The classic builder attests nothing.
        let is_classic = |options: &DockerfileOptions| options.dialect == Dialect::Classic;
        match input {
            Input::Dockerfile { options, .. } if is_classic(options) => Ok(Self::default()),
            input => Self::parse(&recorded::said(input)),
        }
    }

    /// The same, of options as frontends have them.
    pub(crate) fn parse(options: &BTreeMap<String, String>) -> Result<Self, EngineError> {
        let mut wanted = attests(options)?;
        Ok(Self {
            provenance: wanted.remove(PROVENANCE).map(ProvenanceOrder::parse).transpose()?,
            sbom: wanted.remove(SBOM).map(|said| ScannerOrder::parse(said, options)).transpose()?,
        })
    }
}

/// What the results of a build were made of.
pub(crate) struct Captures {
    /// By platform key: who made the result, and of what.
    of: BTreeMap<String, (std::sync::Arc<Trail>, Capture)>,
}

impl Captures {
    /// Of all that is solved and about to be exported. `trail` is the client's own.
    pub(crate) fn of(trail: &std::sync::Arc<Trail>, result: &FrontendResult, targets: &[&Target]) -> Self {
        let attested = result.attestations.values().flatten().filter_map(|one| one.reference.as_ref());
        let results: BTreeSet<String> =
            result.refs.iter().chain(attested).map(|reference| reference.id().to_owned()).collect();
        let platforms: Vec<Platform> = targets.iter().map(|target| target.platform.clone()).collect();
        let mut of = BTreeMap::new();
        for target in targets {
            let Some(source) = &target.source else { continue };
            // Of what was made of nothing, nothing is told.
            let Some(own) = trail.maker(source.id()) else { continue };
            let platform = result.is_multi_platform().then_some(&target.platform);
            let Some(capture) = own.capture(source.id(), &results, &platforms, platform) else { continue };
            of.insert(target.key.clone(), (own, capture));
        }
        Self { of }
    }

    /// The provenance of one result.
    pub(crate) fn attest(
        &self,
        order: &ProvenanceOrder,
        target: &Target,
        times: &Times,
        maker: &Maker,
        keys: &BuildKeys,
    ) -> Result<Option<Attestation>, EngineError> {
        let (Some((trail, capture)), Some(source)) = (self.of.get(&target.key), &target.source) else {
            return Ok(None);
        };
        order.attestation(maker, trail, capture, source.definition(), times, keys).map(Some)
    }
}

impl Captures {
    /// The provenance of one result as it is kept with the build's record, without what may be a secret.
    pub(crate) fn record(
        &self,
        target: &Target,
        attests: &Attests,
        times: &Times,
        maker: &Maker,
    ) -> Result<Option<(&'static str, Vec<u8>)>, EngineError> {
        let (Some((trail, capture)), Some(source)) = (self.of.get(&target.key), &target.source) else {
            return Ok(None);
        };
        let builder_id = attests.provenance.as_ref().map(|order| order.builder_id().to_owned());
        let order = ProvenanceOrder::of_record(builder_id.unwrap_or_default());
        order.predicate(maker, trail, capture, source.definition(), times).map(Some)
    }
}

impl Times {
    /// Those of a build that begins now, as far as they are known.
    pub(crate) fn begin() -> Self {
        let now = Timestamp::from(OffsetDateTime::now_utc());
        Self { invocation: SnapshotKey::random().to_string(), started: now.clone(), finished: now }
    }

    /// The build is made.
    pub(crate) fn finish(&mut self) {
        self.finished = Timestamp::from(OffsetDateTime::now_utc());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(options: &[(&str, &str)]) -> Result<Attests, String> {
        let options = options.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
        Attests::parse(&options).map_err(|error| error.to_string())
    }

    #[test]
    fn nothing_is_attested_that_nobody_asked_for() {
        assert_eq!(parse(&[("target", "t"), ("build-arg:A", "b")]).unwrap(), Attests::default());
        assert_eq!(parse(&[("attest:provenance", "disabled=true")]).unwrap(), Attests::default());
        assert!(parse(&[("attest:provenance", "mode=min,inline-only=true")]).unwrap().provenance.is_some());
        assert!(parse(&[("build-arg:BUILDKIT_ATTEST_SBOM", "")]).unwrap().sbom.is_some());
    }

    #[test]
    fn what_is_not_understood_is_refused_in_buildkits_words() {
        for (key, value, why) in [
            ("attest:seal", "", "unknown attestation type \"seal\""),
            ("attest:provenance", "mode=most", "invalid mode \"most\""),
            ("attest:provenance", "version=v2", "invalid provenance SLSA version: v2"),
            ("attest:provenance", "version=", "provenance SLSA version cannot be empty"),
            ("attest:provenance", "reproducible=perhaps", "failed to parse reproducible flag \"perhaps\""),
            ("attest:sbom", "generator=", "sbom generator cannot be empty"),
            ("attest:sbom", "generator=Not/An/Image", "failed to parse sbom generator Not/An/Image"),
        ] {
            let error = parse(&[(key, value)]).unwrap_err();
            assert!(error.contains(why), "{key}={value}: {error}");
        }
    }
}
