//! Every case in `tests/cases` is planned here as BuildKit plans it: the same vertices (by digest), said the same of, and the same config.
//!
//! A case is a `Dockerfile`, perhaps a `dockerignore` and `options.json` (frontend options; image configs by name), and `buildkit.json`:
//! what BuildKit's own frontend (`frontend/dockerfile/builder`, master of August 2026) answered to the same input. That was recorded with
//! a gateway client that answers as [`Case::facts`] does; see `tests/cases/README.md`.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use lapstrake_builder_dockerfile::facts::IgnoreFile;
use lapstrake_builder_dockerfile::instructions::Dockerfile;
use lapstrake_builder_dockerfile::parser::detect_syntax;
use lapstrake_builder_dockerfile::{
    Answer, DockerfileOptions, Facts, ImageFact, ImageOrigin, ImageQuery, Need, Plan, PlatformPlan, plan,
};
use lapstrake_builder_llb::pb;
use lapstrake_layerstore_oci::{Digest, Platform};
use prost::Message as _;
use serde::Deserialize;
use serde_json::Value;

#[derive(Deserialize, Default)]
#[serde(default, deny_unknown_fields)]
struct CaseOptions {
    attrs: BTreeMap<String, String>,
    images: BTreeMap<String, Value>,
}

#[derive(Deserialize, Debug, PartialEq)]
#[serde(deny_unknown_fields)]
struct Expected {
    #[serde(default)]
    error: Option<String>,
    #[serde(default)]
    targets: BTreeMap<String, ExpectedTarget>,
    #[serde(default)]
    warnings: Vec<String>,
}

#[derive(Deserialize, Debug, PartialEq)]
struct ExpectedTarget {
    ops: Vec<Op>,
    config: Value,
}

#[derive(Deserialize, Debug, PartialEq)]
#[serde(default, deny_unknown_fields)]
#[derive(Default)]
struct Op {
    digest: String,
    name: String,
    caps: Vec<String>,
    ignore_cache: bool,
    description: BTreeMap<String, String>,
    group: String,
    lines: Vec<i32>,
}

/// Where we choose not to be like BuildKit.
const DEVIATIONS: &[&str] = &[
    // BuildKit says what is wrong, and not with what.
    "error_add_checksum_bad",
    "error_copy_chmod_symbolic",
    "error_windows_drive",
    "error_ignore_pattern",
    // BuildKit shows the end of the text as a garbled character; we say what is missing.
    "error_expansion",
    "error_expansion_open",
    // BuildKit counts the first step of a stage twice if it becomes reachable only through a trigger.
    "onbuild_from",
    "onbuild_from_stage_name",
];

struct Case {
    name: String,
    dir: PathBuf,
    options: CaseOptions,
}

impl Case {
    fn all() -> Vec<Case> {
        let here = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/cases");
        let root = std::env::var_os("DOCKERFILE_CASES").map_or(here, PathBuf::from);
        let mut cases: Vec<Case> = std::fs::read_dir(root)
            .unwrap()
            .map(|entry| entry.unwrap().path())
            .filter(|dir| dir.is_dir())
            .map(|dir| {
                let options = match std::fs::read(dir.join("options.json")) {
                    Ok(json) => serde_json::from_slice(&json).unwrap(),
                    Err(_) => CaseOptions::default(),
                };
                Case { name: dir.file_name().unwrap().to_str().unwrap().to_owned(), dir, options }
            })
            .collect();
        cases.sort_by(|a, b| a.name.cmp(&b.name));
        assert!(cases.len() > 300 || std::env::var_os("DOCKERFILE_CASES").is_some(), "the cases are there");
        cases
    }

    fn expected(&self) -> Expected {
        serde_json::from_slice(&std::fs::read(self.dir.join("buildkit.json")).unwrap()).unwrap()
    }

    fn dockerfile(&self) -> Vec<u8> {
        std::fs::read(self.dir.join("Dockerfile")).unwrap()
    }

    fn plan(&self) -> Result<Plan, String> {
        self.plan_of(self.dockerfile())
    }

    fn plan_of(&self, dockerfile: Vec<u8>) -> Result<Plan, String> {
        let session = Some("session-1".to_owned());
        let platform = Platform::new("linux", "amd64");
        let options = DockerfileOptions::from_frontend_attrs(&self.options.attrs, platform, session, &[])
            .map_err(|e| e.to_string())?;
        let mut facts = Facts::new(dockerfile);
        if let Ok(data) = std::fs::read(self.dir.join("dockerignore")) {
            facts.dockerignore = Some(IgnoreFile { name: ".dockerignore".to_owned(), data: data.into() });
        }
        // Each answer but the last asks for something new, so this ends.
        loop {
            match plan(&options, &facts).map_err(|e| e.to_string())? {
                Answer::Plan(plan) => return Ok(*plan),
                Answer::Need(needs) => {
                    assert!(!needs.is_empty());
                    for need in needs {
                        self.answer(need, &mut facts);
                    }
                }
            }
        }
    }

    fn answer(&self, need: Need, facts: &mut Facts) {
        match need {
            Need::ImageConfig { query, .. } => {
                let fact = self.image(&query);
                assert!(facts.images.insert(query, fact).is_none(), "asked twice");
            }
            Need::ContextIgnore { name, definition } => {
                assert!(!definition.definition().is_scratch());
                let data = std::fs::read(self.dir.join("dockerignore")).ok().map(Into::into);
                assert!(facts.context_ignores.insert(name, data).is_none(), "asked twice");
            }
            // The recording client gives the Dockerfile for every file of a downloaded context.
            Need::HttpContextKind { .. } => facts.http_context_is_archive = Some(false),
            // What the recording client says of every source that has a time.
            Need::Epoch { value, .. } => {
                assert!(facts.epochs.insert(value, Some(1_600_000_000)).is_none(), "asked twice");
            }
            need => panic!("{need:?}"),
        }
    }

    /// An image whose digest is that of its name, and whose config is a default one unless the case says otherwise.
    fn image(&self, query: &ImageQuery) -> ImageFact {
        let name = query.reference.to_string();
        let digest = query.reference.digest().cloned().unwrap_or_else(|| Digest::sha256_of(&name));
        let config = self.options.images.get(&name).cloned().unwrap_or_else(|| {
            let mut config = serde_json::json!({
                "architecture": query.platform.architecture,
                "os": "linux",
                "config": {"Env": ["PATH=/usr/bin:/bin"], "Cmd": ["sh"]},
                "rootfs": {"type": "layers", "diff_ids": [format!("sha256:{}", "a".repeat(64))]},
                "history": [{"created_by": "base"}],
            });
            if !query.platform.variant.is_empty() {
                config["variant"] = query.platform.variant.clone().into();
            }
            config
        });
        if let ImageOrigin::OciLayout { store_id, .. } = &query.origin {
            assert_eq!(store_id, "store");
        }
        ImageFact {
            reference: query.reference.clone(),
            digest: Some(digest),
            config: serde_json::to_vec(&config).unwrap().into(),
            image_id: None,
        }
    }
}

fn target(plan: &PlatformPlan) -> ExpectedTarget {
    let definition = &plan.definition;
    let locations = definition.source.as_ref().map(|source| &source.locations);
    let ops = definition.ops.iter().map(|raw| {
        let digest = Digest::sha256_of(raw);
        let metadata = definition.metadata.get(&digest).cloned().unwrap_or_default();
        let lines = locations.and_then(|l| l.get(digest.as_str())).into_iter().flat_map(|l| &l.locations);
        let lines = lines.flat_map(|l| &l.ranges).filter_map(|r| r.start).map(|p| p.line).collect();
        let name = metadata.custom_name().unwrap_or_default().to_owned();
        let mut description = metadata.description;
        description.remove("llb.customname");
        Op {
            digest: digest.to_string(),
            name,
            caps: metadata.caps.iter().map(ToString::to_string).collect(),
            ignore_cache: metadata.ignore_cache,
            description,
            group: metadata.progress_group.map(|g| format!("{} {}", g.name, g.weak)).unwrap_or_default(),
            lines,
        }
    });
    let config = plan.config.to_frontend_json().unwrap();
    ExpectedTarget { ops: ops.collect(), config: serde_json::from_slice(&config).unwrap() }
}

#[test]
fn plans_are_those_of_buildkit() {
    let mut failures = Vec::new();
    for case in Case::all() {
        let expected = case.expected();
        let actual = match case.plan() {
            Err(error) => Expected { error: Some(error), targets: BTreeMap::new(), warnings: Vec::new() },
            Ok(plan) => {
                let one = plan.targets.len() == 1 && !plan.multi_platform;
                let mut warnings: Vec<String> = plan
                    .warnings
                    .iter()
                    .map(|w| format!("{}: {} (line {})", w.rule.name(), w.message, w.lines.start))
                    .collect();
                warnings.sort();
                let id = |t: &PlatformPlan| if one { String::new() } else { t.platform.to_full_string() };
                let targets = plan.targets.iter().map(|t| (id(t), target(t))).collect();
                Expected { error: None, targets, warnings }
            }
        };
        let deviates = DEVIATIONS.contains(&case.name.as_str());
        assert!(!deviates || actual != expected, "{} is no deviation any more", case.name);
        if actual != expected && !deviates {
            failures.push(format!("{}:\n{}", case.name, difference(&case, &actual, &expected)));
        }
    }
    assert!(failures.is_empty(), "{} cases differ\n{}", failures.len(), failures.join("\n"));
}

#[test]
fn deviations_do_not_touch_digests() {
    for case in Case::all().iter().filter(|case| DEVIATIONS.contains(&case.name.as_str())) {
        let digests = |ops: &[Op]| ops.iter().map(|op| op.digest.clone()).collect::<Vec<_>>();
        let expected = case.expected();
        match case.plan() {
            Err(_) => assert!(expected.error.is_some(), "{}", case.name),
            Ok(plan) => {
                let ops = digests(&target(&plan.targets[0]).ops);
                assert_eq!(ops, digests(&expected.targets[""].ops), "{}", case.name);
            }
        }
    }
}

#[test]
fn what_is_printed_builds_the_same() {
    for case in Case::all() {
        let (Ok(parsed), Ok(plan)) = (Dockerfile::parse(&case.dockerfile()), case.plan()) else { continue };
        // Directives other than `escape` are not in the tree.
        let syntax = detect_syntax(&case.dockerfile());
        let syntax = syntax.map(|found| format!("# syntax={}\n", found.command_line)).unwrap_or_default();
        let printed = format!("{syntax}{parsed}");
        let again =
            case.plan_of(printed.clone().into_bytes()).unwrap_or_else(|e| panic!("{}: {e}", case.name));
        let built = |plan: &Plan| {
            let digests = |ops: &[Op]| ops.iter().map(|op| op.digest.clone()).collect::<Vec<_>>();
            let targets = plan.targets.iter().map(target);
            targets.map(|target| (digests(&target.ops), target.config)).collect::<Vec<_>>()
        };
        assert_eq!(built(&again), built(&plan), "{}\n{printed}", case.name);
    }
}

/// The table in `docs/dockerfile.md` names cases that are there, and names all of them.
#[test]
fn the_table_of_the_reference_is_true() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/dockerfile.md");
    let text = std::fs::read_to_string(path).unwrap();
    let rows = text
        .lines()
        .skip_while(|line| !line.starts_with("| section"))
        .take_while(|line| line.starts_with('|'));
    let is_case = |word: &str| {
        word.chars().all(|ch| ch.is_ascii_lowercase() || ch.is_ascii_digit() || "_*".contains(ch))
    };
    let words = rows.flat_map(|row| row.split('`').skip(1).step_by(2)).filter(|word| is_case(word));
    // Names of tests that are no cases stand before their file.
    let patterns: Vec<&str> = words.filter(|word| !word.starts_with("the_")).collect();
    let cases = Case::all();
    let matches = |pattern: &str, name: &str| match pattern.strip_suffix('*') {
        Some(start) => name.starts_with(start),
        None => name == pattern,
    };
    for pattern in &patterns {
        assert!(cases.iter().any(|case| matches(pattern, &case.name)), "no case is called {pattern}");
    }
    for case in &cases {
        assert!(patterns.iter().any(|pattern| matches(pattern, &case.name)), "{} is in no row", case.name);
    }
}

fn difference(case: &Case, actual: &Expected, expected: &Expected) -> String {
    let mut text = String::new();
    if actual.error != expected.error {
        text += &format!("  error is {:?}\n  should be {:?}\n", actual.error, expected.error);
        return text;
    }
    if actual.warnings != expected.warnings {
        text += &format!("  warnings are {:#?}\n  should be {:#?}\n", actual.warnings, expected.warnings);
    }
    if actual.targets.keys().ne(expected.targets.keys()) {
        text += &format!(
            "  targets are {:?}\n  should be {:?}\n",
            actual.targets.keys(),
            expected.targets.keys()
        );
    }
    for (id, expected) in &expected.targets {
        let Some(actual) = actual.targets.get(id) else { continue };
        if actual.config != expected.config {
            text += &format!("  config is {}\n  should be {}\n", actual.config, expected.config);
        }
        for (i, (a, e)) in actual.ops.iter().zip(&expected.ops).enumerate() {
            if a != e {
                text += &format!("  op {i} is {a:?}\n  should be {e:?}\n");
                break;
            }
        }
        if actual.ops.len() != expected.ops.len() {
            text += &format!("  {} ops, should be {}\n", actual.ops.len(), expected.ops.len());
        }
    }
    if std::env::var_os("DUMP").is_some() {
        for target in case.plan().map(|plan| plan.targets).unwrap_or_default() {
            for raw in &target.definition.ops {
                text += &format!("{:?}\n", pb::Op::decode(&raw[..]).unwrap());
            }
        }
    }
    text
}

#[test]
fn plans_read_like_this() {
    for case in Case::all() {
        let text = match case.plan() {
            Err(error) => format!("error: {error}\n"),
            Ok(plan) => plan.describe().unwrap(),
        };
        insta::with_settings!({ snapshot_path => "snapshots", prepend_module_to_snapshot => false, omit_expression => true }, {
            insta::assert_snapshot!(case.name.as_str(), text);
        });
    }
}
