//! How a result came to be. As BuildKit's `solver/llbsolver/provenance`.

use std::{collections::BTreeMap, path::PathBuf, sync::Arc};

use lapstrake_builder_cache::BuildCache;
use lapstrake_builder_dockerfile::{git_in_one_form, parse_bool};
use lapstrake_builder_exporter::{
    Attestation, AttestationContent, AttestationKind, ExportError, Predicate,
    attestation::{INLINE_ONLY, REASON},
};
use lapstrake_builder_llb::Definition;
use lapstrake_builder_progress::redact;
use lapstrake_builder_solver::KeyId;
use lapstrake_layerstore_oci::{Digest, OciError, Platform, Reference, Timestamp, gojson};
use lapstrake_layerstore_store::{StoreError, Stores};
use lapstrake_layerstore_transfer::{TransferError, blob_chains};
use serde_json::{Map, Value};

use super::{
    Capture, Trail,
    predicate::{
        Access, ConfigSource, Dependency, DigestSet, Local, MoreMetadata, Parameters, Provenance, Request,
        SLSA_1, SLSA_02,
    },
    purl::package_url,
    steps::{files, steps},
    trail::Asked,
};
use crate::{EngineError, FrontendRequest, frontend::DOCKERFILE_VERSION, graphs::BuildKeys};

/// What tells something of the machine or of the client's wishes, and nothing of what is built.
const OF_THE_HOST: [&str; 4] = ["cgroup-parent", "image-resolve-mode", "platform", "cache-imports"];
const CONTEXT: &str = "context";
const VCS: &str = "vcs:";

/// How much is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Mode {
    /// No build-args, labels or names of secrets.
    Min,
    /// The same, and the Dockerfile: for the build's record.
    Record,
    /// The steps with their layers, too.
    Max,
}

/// In which words.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Slsa {
    V02,
    V1,
}

/// Provenance that is wanted.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Order {
    slsa: Slsa,
    mode: Mode,
    builder_id: String,
    filename: PathBuf,
    is_inline_only: bool,
    is_reproducible: bool,
    /// Whether a build whose materials are not all known fails.
    wants_all_materials: bool,
}

/// When a build began and ended, and its name.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Times {
    pub(crate) invocation: String,
    pub(crate) started: Timestamp,
    pub(crate) finished: Timestamp,
}

/// Who makes provenance.
pub(crate) struct Maker {
    /// Where results of steps are.
    pub(crate) cache: Arc<BuildCache>,
    /// What is told of this machine.
    pub(crate) machine: Option<Map<String, Value>>,
}

/// Provenance that waits for layers.
struct Waiting {
    slsa: Slsa,
    provenance: Provenance,
    /// What the steps' results are known by, each output by its name.
    outputs: Vec<(String, Vec<KeyId>)>,
    cache: Arc<BuildCache>,
}

impl Predicate for Waiting {
    fn json(&self, stores: &Stores) -> Result<Vec<u8>, ExportError> {
        let mut provenance = self.provenance.clone();
        for (output, keys) in &self.outputs {
            let Some(snapshot) = self.cache.snapshot_of(keys)? else { continue };
            let chains = match blob_chains(stores, &snapshot) {
                // Nothing holds what the build itself did not need.
                Err(TransferError::Store(StoreError::NotFound { .. })) => continue,
                chains => chains?,
            };
            if !chains.is_empty() {
                provenance.more.layers.insert(output.clone(), chains);
            }
        }
        Ok(self.slsa.write(&provenance)?)
    }
}

impl std::fmt::Debug for Waiting {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Waiting").field("invocation", &self.provenance.invocation).finish_non_exhaustive()
    }
}

impl Slsa {
    fn predicate_type(self) -> &'static str {
        match self {
            Self::V1 => SLSA_1,
            Self::V02 => SLSA_02,
        }
    }

    fn write(self, provenance: &Provenance) -> Result<Vec<u8>, OciError> {
        match self {
            Self::V1 => gojson::to_vec_indent(&provenance.slsa_1(), "  "),
            Self::V02 => gojson::to_vec_indent(&provenance.slsa_02(), "  "),
        }
    }
}

impl Order {
    /// Reads what is said of it.
    pub(crate) fn parse(mut said: BTreeMap<String, String>) -> Result<Self, EngineError> {
        let bad = |why: String| EngineError::Attest { why };
        let slsa = match said.remove("version").as_deref() {
            Some("v0.2") => Slsa::V02,
            Some("v1") | None => Slsa::V1,
            Some("") => return Err(bad("provenance SLSA version cannot be empty".to_owned())),
            Some(other) => return Err(bad(format!("invalid provenance SLSA version: {other}"))),
        };
        let mode = match said.remove("mode").as_deref() {
            Some("min") => Mode::Min,
            Some("max" | "full") | None => Mode::Max,
            Some(other) => return Err(bad(format!("invalid mode {other:?}"))),
        };
        let mut flag = |name: &str| match said.remove(name) {
            None => Ok(false),
            Some(text) => parse_bool(&text)
                .ok_or_else(|| bad(format!("failed to parse {name} flag {text:?}: invalid syntax"))),
        };
        let (is_reproducible, wants_all_materials) = (flag("reproducible")?, flag("complete-materials")?);
        if said.remove("capture-usage").is_some_and(|text| parse_bool(&text) == Some(true)) {
            let what = "provenance that tells what processes used (capture-usage)".to_owned();
            return Err(EngineError::Unsupported { what });
        }
        let inline_only = said.remove("inline-only");
        Ok(Self {
            slsa,
            mode,
            builder_id: said.remove("builder-id").unwrap_or_default(),
            filename: said.remove("filename").map_or_else(|| PathBuf::from("provenance.json"), PathBuf::from),
            is_inline_only: inline_only.is_some_and(|text| parse_bool(&text) == Some(true)),
            is_reproducible,
            wants_all_materials,
        })
    }

    /// What is kept with a build's record: nothing that may be a secret.
    pub(crate) fn of_record(builder_id: String) -> Self {
        Self {
            slsa: Slsa::V1,
            mode: Mode::Record,
            builder_id,
            filename: PathBuf::new(),
            is_inline_only: false,
            is_reproducible: false,
            wants_all_materials: false,
        }
    }

    /// Who it says that built it.
    pub(crate) fn builder_id(&self) -> &str {
        &self.builder_id
    }

    /// The provenance of a result that a frontend had made, of this graph, whose outputs are known by `keys`.
    pub(crate) fn attestation(
        &self,
        maker: &Maker,
        trail: &Trail,
        capture: &Capture,
        definition: &Definition,
        times: &Times,
        keys: &BuildKeys,
    ) -> Result<Attestation, EngineError> {
        let provenance = self.provenance(maker, trail, capture, definition, times)?;
        let mut outputs = Vec::new();
        if let Some(steps) = &provenance.build_config {
            for (vertex, output, keys) in keys.by_output() {
                outputs.extend(steps.step(&vertex).map(|step| (format!("{step}:{output}"), keys)));
            }
        }
        let cache = Arc::clone(&maker.cache);
        let said = Waiting { slsa: self.slsa, provenance, outputs, cache };
        let metadata = BTreeMap::from([
            (REASON.to_owned(), b"provenance".to_vec()),
            (INLINE_ONLY.to_owned(), self.is_inline_only.to_string().into_bytes()),
        ]);
        Ok(Attestation {
            kind: AttestationKind::InToto,
            metadata,
            path: self.filename.clone(),
            content: AttestationContent::Own(Arc::new(said)),
            predicate_type: self.slsa.predicate_type().to_owned(),
            subjects: Vec::new(),
        })
    }

    /// The same as a bare predicate, with its type and without layers.
    pub(crate) fn predicate(
        &self,
        maker: &Maker,
        trail: &Trail,
        capture: &Capture,
        definition: &Definition,
        times: &Times,
    ) -> Result<(&'static str, Vec<u8>), EngineError> {
        let provenance = self.provenance(maker, trail, capture, definition, times)?;
        let json = self.slsa.write(&provenance);
        let json = json.map_err(|error| EngineError::Attest { why: error.to_string() })?;
        Ok((self.slsa.predicate_type(), json))
    }

    fn provenance(
        &self,
        maker: &Maker,
        trail: &Trail,
        capture: &Capture,
        definition: &Definition,
        times: &Times,
    ) -> Result<Provenance, EngineError> {
        let nobody = Asked::default();
        let asked = trail.asked().unwrap_or(&nobody);
        let Request { config_source, request: mut parameters } = told(asked, capture);
        // What no frontend was asked for has no question behind it either.
        let root = trail.asked().and_then(|_| trail.root());
        if let Some(root) = root.map(|root| told(root, capture))
            && root.request != Parameters::default()
            && (root.config_source != config_source || root.request != parameters)
        {
            parameters.root = Some(Box::new(root));
        }
        let mut vcs = BTreeMap::new();
        parameters.args.retain(|key, value| match key.strip_prefix(VCS) {
            Some(name) => {
                if !value.is_empty() {
                    vcs.insert(name.to_owned(), value.clone());
                }
                false
            }
            None => true,
        });
        let access = |(id, optional): (&String, &bool)| Access { id: id.clone(), optional: *optional };
        parameters.secrets = capture.secrets.iter().map(access).collect();
        parameters.ssh = capture.ssh.iter().map(access).collect();
        parameters.locals = capture.locals.iter().map(|name| Local { name: name.clone() }).collect();
        let has_dependencies = !capture.is_incomplete && capture.locals.is_empty();
        if self.wants_all_materials && !has_dependencies {
            return Err(incomplete(capture));
        }
        let mut provenance = Provenance {
            dependencies: dependencies(capture)?,
            config_source,
            build_config: None,
            platform: Platform::host().normalized().to_string(),
            machine: maker.machine.clone().unwrap_or_default(),
            dockerfile_version: (asked.request.frontend == "dockerfile.v0")
                .then(|| DOCKERFILE_VERSION.to_owned()),
            builder_id: self.builder_id.clone(),
            invocation: times.invocation.clone(),
            started: times.started.clone(),
            finished: times.finished.clone(),
            more: MoreMetadata { vcs, ..MoreMetadata::default() },
            is_hermetic: has_dependencies && !capture.has_network,
            has_request: !asked.request.frontend.is_empty(),
            has_dependencies,
            is_reproducible: self.is_reproducible,
            request: parameters,
        };
        match self.mode {
            Mode::Min | Mode::Record => {
                if scrub(&mut provenance.request) {
                    provenance.has_request = false;
                }
                if self.mode == Mode::Record {
                    provenance.more.source = files(definition)?;
                }
            }
            Mode::Max => {
                let (config, source) = steps(definition)?;
                provenance.build_config = Some(config);
                provenance.more.source = source;
            }
        }
        provenance.request.compatibility_version = Some(trail.compatibility().number());
        Ok(provenance)
    }
}

/// What was asked, as it is told, with who made the graphs that came with it.
pub(super) fn told(asked: &Asked, capture: &Capture) -> Request {
    let mut told = request(&asked.request, capture);
    told.request.inputs.clone_from(&asked.inputs);
    told
}

/// The context and the Dockerfile's name stand apart.
fn request(asked: &FrontendRequest, capture: &Capture) -> Request {
    let options = &asked.options;
    let said = |key: &str| options.get(key).filter(|value| !value.is_empty());
    let context_key = said("contextkey").map_or(CONTEXT, String::as_str);
    let mut args = BTreeMap::new();
    for (key, value) in options {
        if OF_THE_HOST.contains(&key.as_str()) || key.starts_with("attest:") {
            continue;
        }
        let names_place = key == context_key || key.starts_with("context:") || key.starts_with(VCS);
        let value = if names_place { redact(value).into_owned() } else { value.clone() };
        args.insert(key.clone(), value);
    }
    let mut config_source = ConfigSource::default();
    let given = "input:context";
    let context_key = if said("contextkey").is_none() && said(given).is_some() { given } else { context_key };
    if let Some(context) = args.remove(context_key) {
        if context.is_empty() {
            args.insert(context_key.to_owned(), context);
        } else {
            let found = found(&context, capture);
            config_source.uri = redact(found.as_ref().map_or(&context, |(uri, _)| uri)).into_owned();
            config_source.digest = found.map(|(_, digest)| digest).unwrap_or_default();
        }
    }
    if said("filename").is_some() {
        config_source.path = args.remove("filename").unwrap_or_default();
    }
    let request = Parameters { frontend: asked.frontend.clone(), args, ..Parameters::default() };
    Request { config_source, request }
}

/// Which of the materials a context is.
fn found(context: &str, capture: &Capture) -> Option<(String, DigestSet)> {
    let whole = git_in_one_form(context, true);
    let place = git_in_one_form(context, false).unwrap_or_else(|| context.to_owned());
    if let Some(git) = capture.git.iter().find(|git| git.url == place) {
        return Some((whole.unwrap_or_else(|| context.to_owned()), commit(&git.commit)));
    }
    let http = capture.http.iter().find(|http| http.url == place)?;
    Some((http.url.clone(), digests(&http.digest)))
}

fn digests(digest: &Digest) -> DigestSet {
    [(digest.algorithm().to_string(), digest.hex().to_owned())].into()
}

fn commit(commit: &str) -> DigestSet {
    let algorithm = if commit.len() == 64 { "sha256" } else { "sha1" };
    [(algorithm.to_owned(), commit.to_owned())].into()
}

fn dependencies(capture: &Capture) -> Result<Vec<Dependency>, EngineError> {
    let name = |text: &str| {
        Reference::parse(text)
            .map_err(|error| EngineError::Attest { why: format!("failed to parse ref {text:?}: {error}") })
    };
    let kind = |is_local: bool| if is_local { "oci" } else { "docker" };
    let mut all = Vec::new();
    for image in &capture.images {
        let uri = package_url(kind(image.is_local), &name(&image.reference)?, image.platform.as_ref(), &[]);
        all.push(Dependency { uri, digest: image.digest.as_ref().map(digests).unwrap_or_default() });
    }
    for blob in &capture.blobs {
        let also = [("ref_type", "blob")];
        let uri = package_url(kind(blob.is_local), &name(&blob.reference)?, None, &also);
        all.push(Dependency { uri, digest: digests(&blob.digest) });
    }
    for git in &capture.git {
        all.push(Dependency { uri: git.url.clone(), digest: commit(&git.commit) });
        if let Some(bundle) = &git.bundle {
            let also = [("ref_type", "bundle"), ("vcs_url", git.url.as_str())];
            let uri = package_url(kind(bundle.is_local), &name(&bundle.reference)?, None, &also);
            all.push(Dependency { uri, digest: digests(&bundle.digest) });
        }
    }
    for http in &capture.http {
        all.push(Dependency { uri: http.url.clone(), digest: digests(&http.digest) });
    }
    Ok(all)
}

/// Leaves out what `mode=min` does not tell, and says whether that was anything that decides what is built.
fn scrub(request: &mut Parameters) -> bool {
    let all = request.args.len();
    request.args.retain(|key, _| !key.starts_with("build-arg:") && !key.starts_with("label:"));
    let mut is_less = request.args.len() < all;
    request.secrets.clear();
    request.ssh.clear();
    for input in request.inputs.values_mut() {
        is_less |= scrub(&mut input.request);
    }
    if let Some(root) = &mut request.root {
        is_less |= scrub(&mut root.request);
    }
    is_less
}

fn incomplete(capture: &Capture) -> EngineError {
    let mut why = "provenance materials are incomplete\n\nThe build requested complete provenance materials, but not all dependencies could be captured."
        .to_owned();
    if !capture.locals.is_empty() {
        why.push_str("\n\nUncaptured local sources:");
        for name in &capture.locals {
            let name = if name.is_empty() { "<unnamed>" } else { name };
            why.push_str(&format!("\n  - {name}\n    reason: local_source"));
        }
    }
    EngineError::Attest { why }
}
