//! Bills of materials, by scanners that are images: BuildKit's protocol (`docs/attestations/sbom-protocol.md` there).
//!
//! ```text
//!   result ── mounted at /run/src/core/sbom ──────┐
//!   other stages ── /run/src/extras/sbom-NAME ────┼─► scanner's process, in a sandbox as any step ─► /run/out: a bundle of in-toto statements
//!   scanner's image ── / ─────────────────────────┘
//! ```

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
};

use lapstrake_builder_dockerfile::{ImageOrigin, ImageQuery, Plan};
use lapstrake_builder_exporter::attestation::{REASON, SBOM_CORE};
use lapstrake_builder_llb::{Definition, Metadata, ResolveMode, pb};
use lapstrake_layerstore_oci::{Digest, ImageConfig, Platform, Reference};
use prost::Message as _;

use crate::{
    Engine, EngineError, FrontendResult, GatewayAttestation, bridge::BuildParts, engine::internal_vertex,
};

/// The predicate of SPDX documents.
const SPDX: &str = "https://spdx.dev/Document";
/// What the scan of the result itself is called.
const CORE: &str = "sbom";
const SOURCE: &str = "/run/src/";
const DESTINATION: &str = "/run/out/";
const CUSTOM_NAME: &str = "llb.customname";

/// A bill of materials that is wanted.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct ScannerOrder {
    /// The scanner's image.
    image: Reference,
    /// What the scanner is told, by name.
    parameters: BTreeMap<String, String>,
    mode: ResolveMode,
    /// Whether a scan that was made before will not do.
    no_cache: bool,
}

impl ScannerOrder {
    /// Reads what is said of it, and what the build's options say of images and caches.
    pub(crate) fn parse(
        mut said: BTreeMap<String, String>,
        options: &BTreeMap<String, String>,
    ) -> Result<Self, EngineError> {
        let bad = |why: String| EngineError::Attest { why };
        let generator = said.remove("generator").unwrap_or_default();
        if generator.is_empty() {
            return Err(bad("sbom generator cannot be empty".to_owned()));
        }
        let image = Reference::parse(&generator)
            .map_err(|error| bad(format!("failed to parse sbom generator {generator}: {error}")))?;
        let mode = match options.get("image-resolve-mode").map(String::as_str) {
            Some("pull") => ResolveMode::ForcePull,
            Some("local") => ResolveMode::PreferLocal,
            _ => ResolveMode::Default,
        };
        let no_cache = options.get("no-cache").is_some_and(String::is_empty);
        Ok(Self { image: image.with_default_tag(), parameters: said, mode, no_cache })
    }
}

/// A scanner that is ready.
pub(crate) struct Scanner {
    image: Reference,
    platform: Platform,
    mode: ResolveMode,
    config: ImageConfig,
    parameters: BTreeMap<String, String>,
}

/// One scan.
pub(crate) struct Scan<'a> {
    /// What is scanned: the platform's key.
    pub(crate) name: &'a str,
    pub(crate) core: &'a Definition,
    /// What else is, by name.
    pub(crate) extras: &'a [(String, Definition)],
    pub(crate) no_cache: bool,
}

impl Engine {
    /// Finds out what a scanner is.
    pub(crate) async fn scanner(
        &self,
        order: &ScannerOrder,
        build: &Arc<BuildParts>,
    ) -> Result<Scanner, EngineError> {
        let BuildParts { scope, progress, cancel, .. } = &**build;
        let ScannerOrder { image, parameters, mode, .. } = order.clone();
        let platform = Platform::host();
        let origin = ImageOrigin::registry(mode);
        let query = ImageQuery { origin, reference: image, platform: platform.clone() };
        let vertex =
            internal_vertex(progress, format!("resolve image config for docker-image://{}", query.reference));
        let cx = self.source_context(scope, vertex.clone(), cancel);
        let find = async {
            let governed = self.judge_image(&query, &scope.policy, scope).await?;
            let fact = self.workshop().sources.resolve_image(&cx, &governed).await?;
            scope.trail.note_query(&governed, &fact);
            Ok::<_, EngineError>((governed.reference, fact))
        };
        let (image, fact) = vertex.track(find).await?;
        let unusable = |why: String| EngineError::Attest { why };
        let config = ImageConfig::from_json(&fact.config)
            .map_err(|error| unusable(format!("scanner {image}: {error}")))?;
        if command(&config).is_empty() {
            return Err(unusable(format!("scanner {image} does not have cmd")));
        }
        Ok(Scanner { image, platform, mode, config, parameters })
    }

    /// What a scanner makes of a result, not run yet.
    pub(crate) fn scan(
        &self,
        scanner: &Scanner,
        scan: &Scan<'_>,
        build: &Arc<BuildParts>,
    ) -> Result<GatewayAttestation, EngineError> {
        let graph = scanner.graph(scan)?;
        Ok(GatewayAttestation {
            kind: lapstrake_api_proto::gateway::AttestationKind::Bundle,
            metadata: BTreeMap::from([
                (REASON.to_owned(), b"sbom".to_vec()),
                (SBOM_CORE.to_owned(), CORE.as_bytes().to_vec()),
            ]),
            reference: Some(self.reference(build, graph, &[])),
            path: String::new(),
            predicate_type: SPDX.to_owned(),
            subjects: Vec::new(),
        })
    }

    /// Has the targets of a plan scanned, with the stages that the Dockerfile wants to be.
    pub(crate) async fn scan_plan(
        &self,
        order: &ScannerOrder,
        plan: &Plan,
        result: &mut FrontendResult,
        build: &Arc<BuildParts>,
    ) -> Result<(), EngineError> {
        let scanner = self.scanner(order, build).await?;
        for target in &plan.targets {
            let name = target.platform.to_full_string();
            let scan = Scan {
                name: &name,
                core: &target.definition,
                extras: &target.scans,
                no_cache: target.ignore_cache,
            };
            let made = self.scan(&scanner, &scan, build)?;
            result.attestations.entry(name).or_default().push(made);
        }
        Ok(())
    }

    /// Has all results scanned, unless their frontend has seen to it.
    pub(crate) async fn scan_results(
        &self,
        order: &ScannerOrder,
        result: &mut FrontendResult,
        build: &Arc<BuildParts>,
    ) -> Result<(), EngineError> {
        let is_there = |all: &Vec<GatewayAttestation>| all.iter().any(|one| one.predicate_type == SPDX);
        if result.attestations.values().any(is_there) {
            return Ok(());
        }
        let scanner = self.scanner(order, build).await?;
        for target in result.targets()? {
            let Some(source) = &target.source else { continue };
            let scan =
                Scan { name: &target.key, core: source.definition(), extras: &[], no_cache: order.no_cache };
            let made = self.scan(&scanner, &scan, build)?;
            result.attestations.entry(target.key).or_default().push(made);
        }
        Ok(())
    }
}

/// The whole command line of an image.
fn command(config: &ImageConfig) -> Vec<String> {
    let config = &config.config;
    config.entrypoint.iter().flatten().chain(config.cmd.iter().flatten()).cloned().collect()
}

impl Scanner {
    /// The graph of a scan: all of what is scanned, the scanner's image, and its process.
    fn graph(&self, scan: &Scan<'_>) -> Result<Definition, EngineError> {
        let mut graph = Joined::default();
        let mut mounts = vec![bind(0, "/", 0)];
        let image = graph.add(
            &pb::Op {
                op: Some(pb::op::Op::Source(self.source())),
                platform: Some(platform(&self.platform)),
                ..pb::Op::default()
            },
            Metadata::default(),
        );
        let mut inputs = vec![pb::Input { digest: image, index: 0 }];
        mounts.push(bind(-1, DESTINATION.trim_end_matches('/'), 1));
        let extras = scan.extras.iter().map(|(name, graph)| (format!("{SOURCE}extras/{CORE}-{name}"), graph));
        for (dest, scanned) in [(format!("{SOURCE}core/{CORE}"), scan.core)].into_iter().chain(extras) {
            let input = match graph.join(scanned)? {
                Some(head) => {
                    inputs.push(head);
                    i64::try_from(inputs.len() - 1).expect("there are few inputs")
                }
                None => -1,
            };
            mounts.push(pb::Mount { readonly: true, ..bind(input, &dest, -1) });
        }
        let tmpfs = pb::Mount { tmpfs_opt: Some(pb::TmpfsOpt::default()), ..bind(-1, "/tmp", -1) };
        mounts.push(pb::Mount { mount_type: pb::MountType::Tmpfs.into(), ..tmpfs });
        let cwd = Some(self.config.config.working_dir.clone()).filter(|cwd| !cwd.is_empty());
        let meta = pb::Meta {
            args: command(&self.config),
            env: self.env(!scan.extras.is_empty()),
            cwd: cwd.unwrap_or_else(|| "/".to_owned()),
            ..pb::Meta::default()
        };
        let exec = pb::ExecOp { meta: Some(meta), mounts, ..pb::ExecOp::default() };
        let op = pb::Op {
            inputs,
            op: Some(pb::op::Op::Exec(exec)),
            platform: Some(platform(&self.platform)),
            ..pb::Op::default()
        };
        let name = format!("[{}] generating sbom using {}", scan.name, self.image);
        let metadata = Metadata {
            description: [(CUSTOM_NAME.to_owned(), name)].into(),
            ignore_cache: scan.no_cache,
            ..Metadata::default()
        };
        let scanned = graph.add(&op, metadata);
        let end = pb::Op { inputs: vec![pb::Input { digest: scanned, index: 1 }], ..pb::Op::default() };
        graph.add(&end, Metadata::default());
        Ok(graph.0)
    }

    fn source(&self) -> pb::SourceOp {
        let mut attrs = HashMap::new();
        match self.mode {
            ResolveMode::Default => {}
            ResolveMode::ForcePull => _ = attrs.insert("image.resolvemode".to_owned(), "pull".to_owned()),
            ResolveMode::PreferLocal => _ = attrs.insert("image.resolvemode".to_owned(), "local".to_owned()),
        }
        pb::SourceOp {
            identifier: format!("docker-image://{}", self.image),
            attrs: attrs.into_iter().collect(),
        }
    }

    fn env(&self, has_extras: bool) -> Vec<String> {
        let mut env = self.config.config.env.clone();
        let mut set = |name: &str, value: &str| {
            let before = format!("{name}=");
            env.retain(|known| !known.starts_with(&before));
            env.push(format!("{before}{value}"));
        };
        set("BUILDKIT_SCAN_DESTINATION", DESTINATION);
        set("BUILDKIT_SCAN_SOURCE", &format!("{SOURCE}core/{CORE}"));
        if has_extras {
            set("BUILDKIT_SCAN_SOURCE_EXTRAS", &format!("{SOURCE}extras/"));
        }
        for (name, value) in &self.parameters {
            set(&format!("BUILDKIT_SCAN_{name}"), value);
        }
        env
    }
}

fn bind(input: i64, dest: &str, output: i64) -> pb::Mount {
    pb::Mount { input, dest: dest.to_owned(), output, ..pb::Mount::default() }
}

fn platform(platform: &Platform) -> pb::Platform {
    let Platform { os, architecture, variant, os_version, os_features } = platform.clone();
    pb::Platform { os, architecture, variant, os_version, os_features }
}

/// A graph that others are put into, each op once.
#[derive(Default)]
struct Joined(Definition);

impl Joined {
    fn add(&mut self, op: &pb::Op, metadata: Metadata) -> String {
        let raw = op.encode_to_vec();
        let digest = Digest::sha256_of(&raw);
        self.0.ops.push(raw.into());
        self.0.metadata.insert(digest.clone(), metadata);
        digest.to_string()
    }

    /// Takes in all of a graph but its end. Answers with its result; `None` for the empty tree.
    fn join(&mut self, graph: &Definition) -> Result<Option<pb::Input>, EngineError> {
        let Some((digest, output)) = graph.head()? else { return Ok(None) };
        let (_, ops) = graph.ops.split_last().expect("a graph with a head has an end");
        for op in ops {
            if !self.0.ops.contains(op) {
                self.0.ops.push(op.clone());
            }
        }
        for (vertex, metadata) in &graph.metadata {
            self.0.metadata.entry(vertex.clone()).or_insert_with(|| metadata.clone());
        }
        Ok(Some(pb::Input { digest: digest.to_string(), index: i64::from(output) }))
    }
}
