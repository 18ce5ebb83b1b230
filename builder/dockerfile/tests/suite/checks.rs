//! Every case in `tests/checks` is asked of us as it was asked of BuildKit's frontend: the warnings of a build, where and how it fails, and
//! the answers to subrequests. See `tests/checks/README.md`.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use lapstrake_builder_dockerfile::excerpt::excerpt;
use lapstrake_builder_dockerfile::facts::IgnoreFile;
use lapstrake_builder_dockerfile::lint::{Rule, Warning};
use lapstrake_builder_dockerfile::subrequest::{Subrequest, SubrequestAnswer, answer};
use lapstrake_builder_dockerfile::{
    Answer, DockerfileOptions, Facts, ImageFact, ImageQuery, Need, plan_and_warn,
};
use lapstrake_layerstore_oci::{Digest, Platform};
use serde::Deserialize;
use serde_json::Value;

#[derive(Deserialize, Default)]
#[serde(default, deny_unknown_fields)]
struct CaseOptions {
    attrs: BTreeMap<String, String>,
    images: BTreeMap<String, Value>,
    missing: Vec<String>,
}

#[derive(Deserialize, Debug, Default)]
#[serde(default, deny_unknown_fields)]
struct Expected {
    error: String,
    places: Vec<Vec<(u32, u32)>>,
    excerpts: Vec<String>,
    warnings: Vec<Told>,
    metadata: BTreeMap<String, String>,
}

#[derive(Deserialize, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[serde(deny_unknown_fields)]
struct Told {
    short: String,
    level: u32,
    detail: Vec<String>,
    url: String,
    lines: Vec<(u32, u32)>,
}

struct Case {
    name: String,
    path: PathBuf,
    options: CaseOptions,
    expected: BTreeMap<String, Expected>,
}

impl Case {
    fn all() -> Vec<Case> {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/checks");
        let names = std::fs::read_dir(&root).unwrap().map(|entry| entry.unwrap().file_name());
        let names = names.filter_map(|name| Some(name.to_str()?.strip_suffix(".Dockerfile")?.to_owned()));
        let mut cases: Vec<Case> = names
            .map(|name| {
                let path = root.join(&name);
                let options = std::fs::read(format!("{}.options.json", path.display()));
                let options = options.map(|json| serde_json::from_slice(&json).unwrap()).unwrap_or_default();
                let expected = std::fs::read(format!("{}.buildkit.json", path.display())).unwrap();
                Case { name, options, expected: serde_json::from_slice(&expected).unwrap(), path }
            })
            .collect();
        cases.sort_by(|a, b| a.name.cmp(&b.name));
        assert!(cases.len() > 150, "the cases are there");
        cases
    }

    fn text(&self) -> Vec<u8> {
        std::fs::read(format!("{}.Dockerfile", self.path.display())).unwrap()
    }

    fn options(&self, request: &str) -> Result<DockerfileOptions, String> {
        let mut attrs = self.options.attrs.clone();
        if request != "build" {
            attrs.insert("requestid".to_owned(), format!("frontend.{request}"));
        }
        let session = Some("session-1".to_owned());
        DockerfileOptions::from_frontend_attrs(&attrs, Platform::new("linux", "amd64"), session, &[])
            .map_err(|e| e.to_string())
    }

    fn facts(&self) -> Facts {
        let mut facts = Facts::new(self.text());
        if let Ok(data) = std::fs::read(format!("{}.dockerignore", self.path.display())) {
            facts.dockerignore = Some(IgnoreFile { name: ".dockerignore".to_owned(), data: data.into() });
        }
        facts
    }

    fn answer(&self, need: Need, facts: &mut Facts) {
        let Need::ImageConfig { query, .. } = need else { panic!("{need:?}") };
        let name = query.reference.to_string();
        if self.options.missing.contains(&name) {
            let why = format!("failed to resolve source metadata for {name}: {name}: not found");
            assert!(facts.missing.insert(query, why).is_none(), "asked twice");
        } else {
            let fact = self.image(&query);
            assert!(facts.images.insert(query, fact).is_none(), "asked twice");
        }
    }

    fn image(&self, query: &ImageQuery) -> ImageFact {
        let name = query.reference.to_string();
        let config = self.options.images.get(&name).cloned().unwrap_or_else(|| {
            serde_json::json!({
                "architecture": query.platform.architecture,
                "os": "linux",
                "variant": query.platform.variant,
                "config": {"Env": ["PATH=/usr/bin:/bin"], "Cmd": ["sh"]},
                "rootfs": {"type": "layers", "diff_ids": [format!("sha256:{}", "a".repeat(64))]},
                "history": [{"created_by": "base"}],
            })
        });
        ImageFact {
            reference: query.reference.clone(),
            digest: Some(Digest::sha256_of(&name)),
            config: serde_json::to_vec(&config).unwrap().into(),
            image_id: None,
        }
    }

    /// What a build is told: warnings, and why it fails.
    fn build(&self) -> (Vec<Told>, Option<lapstrake_builder_dockerfile::Error>, String) {
        let options = match self.options("build") {
            Ok(options) => options,
            Err(error) => return (Vec::new(), None, error),
        };
        let mut facts = self.facts();
        loop {
            let planning = plan_and_warn(&options, &facts);
            let error = match planning.result {
                Ok(Answer::Need(needs)) => {
                    needs.into_iter().for_each(|need| self.answer(need, &mut facts));
                    continue;
                }
                Ok(Answer::Plan(_)) => None,
                Err(error) => Some(error),
            };
            let text = error.as_ref().map(ToString::to_string).unwrap_or_default();
            return (planning.warnings.iter().map(told).collect(), error, text);
        }
    }
}

fn told(warning: &Warning) -> Told {
    Told {
        short: warning.short(),
        level: 1,
        detail: vec![warning.rule.description().to_owned()],
        url: warning.rule.url().to_owned(),
        lines: warning.lines.lines().map(|line| (line, line)).collect(),
    }
}

#[test]
fn warnings_are_those_of_buildkit() {
    let mut failures = String::new();
    for mut case in Case::all() {
        let mut expected = case.expected.remove("build").unwrap().warnings;
        let (mut actual, ..) = case.build();
        // Those of one instruction have no order in BuildKit.
        expected.sort();
        actual.sort();
        if actual != expected {
            failures += &format!("{}:\n", case.name);
            actual.iter().for_each(|told| failures += &format!("  is        {told:?}\n"));
            expected.iter().for_each(|told| failures += &format!("  should be {told:?}\n"));
        }
    }
    assert!(failures.is_empty(), "{failures}");
}

#[test]
fn every_rule_has_a_case_that_breaks_it_and_one_that_does_not() {
    let cases = Case::all();
    for rule in Rule::ALL {
        let breaks = |case: &Case| {
            let prefix = format!("{}: ", rule.name());
            case.expected["build"].warnings.iter().any(|told| told.short.starts_with(&prefix))
        };
        let named = |suffix: &str| {
            let name = format!("{}-{suffix}", rule.name());
            cases.iter().find(|case| case.name == name).unwrap_or_else(|| panic!("{name} is not there"))
        };
        assert!(breaks(named("hit")), "{}", rule.name());
        assert!(!breaks(named("ok")), "{}", rule.name());
    }
}

/// Where BuildKit's words are not the best ones.
fn deviates(case: &str) -> bool {
    // BuildKit shows the end of the text as a garbled character; we say what is missing.
    case == "error-expansion"
        // We say which digest it is.
        || case == "error-checksum"
}

/// An error without what is left to chance in BuildKit: the order of rules, and which of equally near words it suggests.
fn settled(error: &str) -> String {
    if let Some((text, rules)) = error.split_once("found for rules: ") {
        let mut rules: Vec<&str> = rules.split(", ").collect();
        rules.sort_unstable();
        return format!("{text}found for rules: {}", rules.join(", "));
    }
    match error.split_once(" (did you mean ") {
        Some((text, _)) if error.contains("unknown instruction") => text.to_owned(),
        _ => error.to_owned(),
    }
}

#[test]
fn errors_are_those_of_buildkit() {
    let mut failures = String::new();
    for mut case in Case::all() {
        let expected = case.expected.remove("build").unwrap();
        let (_, error, text) = case.build();
        if settled(&text) != settled(&expected.error) && !deviates(&case.name) {
            failures += &format!("{}:\n  is        {text}\n  should be {}\n", case.name, expected.error);
        }
        let lines = error.and_then(|error| error.lines()).map(|lines| lines.start);
        let first = expected.places.first().and_then(|place| Some(place.first()?.0));
        // We know the place of some that BuildKit does not; and point at the directive at fault, not at the first line or at none.
        let directive = ["error-directive-twice", "error-escape"].contains(&case.name.as_str());
        if first.is_some() && lines != first && !directive {
            failures += &format!("{}:\n  at line   {lines:?}\n  should be {first:?}\n", case.name);
        }
    }
    assert!(failures.is_empty(), "{failures}");
}

#[test]
fn excerpts_are_those_of_buildkit_with_a_mark() {
    let mut rendered = String::new();
    for mut case in Case::all() {
        let expected = case.expected.remove("build").unwrap();
        let (_, Some(error), _) = case.build() else { continue };
        let text = String::from_utf8(case.text()).unwrap();
        let places = error.places();
        // It says of each what it prints there, inner before outer.
        for shown in expected.excerpts.iter().filter(|shown| !shown.is_empty()) {
            let ours = places.iter().map(|place| excerpt("Dockerfile", &text, &[*place], None));
            let is_ours = ours.collect::<Vec<_>>().contains(shown);
            assert!(is_ours || case.name == "error-directive-twice", "{}: {shown}", case.name);
        }
        let marked = error.excerpt("Dockerfile", &text);
        let unmarked: String =
            marked.split_inclusive('\n').filter(|line| !line.starts_with("     |")).collect();
        let plain: String =
            places.iter().map(|place| excerpt("Dockerfile", &text, &[*place], None)).collect();
        assert_eq!(unmarked, plain, "{}", case.name);
        rendered += &format!("{}\n{marked}{error}\n\n", case.name);
    }
    insta::assert_snapshot!("errors_read_like_this", rendered);
}

/// Asks as often as it takes.
fn ask(case: &Case, request: &str) -> Result<BTreeMap<String, String>, String> {
    let options = case.options(request)?;
    let request = Subrequest::parse(options.subrequest.as_deref().unwrap()).map_err(|e| e.to_string())?;
    let mut facts = case.facts();
    loop {
        match answer(request, &options, &facts, &mut Vec::new()).map_err(|e| e.to_string())? {
            SubrequestAnswer::Need(needs) => needs.into_iter().for_each(|need| case.answer(need, &mut facts)),
            SubrequestAnswer::Reply(reply) => {
                return Ok(reply.metadata.keys().map(|name| (name.clone(), reply.text(name))).collect());
            }
        }
    }
}

/// Warnings of one instruction, and arguments of one line, have no order in BuildKit.
fn ordered(metadata: &BTreeMap<String, String>) -> BTreeMap<String, Value> {
    let read = |(name, text): (&String, &String)| {
        // Line ends are none of what we show.
        let text = &text.replace('\r', "");
        let mut value: Value = serde_json::from_str(text).unwrap_or_else(|_| {
            let mut blocks: Vec<&str> = text.split("\nWARNING: ").collect();
            let mut lines: Vec<&str> = text.lines().collect();
            blocks.sort_unstable();
            lines.sort_unstable();
            if blocks.len() > 1 { blocks.into() } else { lines.into() }
        });
        for list in ["warnings", "args", "secrets", "ssh"] {
            if let Some(list) = value.get_mut(list).and_then(Value::as_array_mut) {
                list.sort_by_key(Value::to_string);
            }
        }
        if let Some(message) = value.pointer_mut("/buildError/message") {
            *message = settled(message.as_str().unwrap()).into();
        }
        (name.clone(), value)
    };
    metadata.iter().map(read).collect()
}

#[test]
fn subrequests_are_answered_as_by_buildkit() {
    let mut failures = String::new();
    let mut same = 0;
    for mut case in Case::all() {
        for request in ["lint", "outline", "targets", "describe", "unknown"] {
            let Some(expected) = case.expected.remove(request) else { continue };
            let id = if request == "describe" { "subrequests.describe" } else { request };
            let actual = ask(&case, id);
            // `frontend.targets` is too much for BuildKit if a comment has `check=`.
            if expected.error.starts_with("panic") {
                assert!(actual.is_ok());
                continue;
            }
            // Ours has a place where BuildKit's has none, or the first line, and says of no stages that there are none.
            let other = ["error-directive-twice", "error-escape", "error-empty", "error-only-args"];
            if deviates(&case.name) || other.contains(&case.name.as_str()) {
                continue;
            }
            let is_same = match &actual {
                Ok(actual) => {
                    let (mut actual, expected) = (ordered(actual), ordered(&expected.metadata));
                    let place = |answer: &BTreeMap<String, Value>| {
                        answer
                            .get("result.json")
                            .and_then(|json| json.pointer("/buildError/location").cloned())
                    };
                    if place(&expected) == Some(Value::Object(serde_json::Map::new())) {
                        actual.get_mut("result.json").unwrap()["buildError"]["location"] =
                            Value::Object(serde_json::Map::new());
                    }
                    actual == expected
                }
                Err(error) => settled(error) == settled(&expected.error),
            };
            same += usize::from(actual.as_ref().is_ok_and(|metadata| *metadata == expected.metadata));
            if !is_same {
                let tail = |metadata: &BTreeMap<String, String>| {
                    let json = metadata.get("result.json").map_or("", String::as_str);
                    json.split("language").nth(1).unwrap_or(json).replace(['\n', ' '], "")
                };
                let actual = actual.as_ref().map(tail);
                let expected = (&expected.error, tail(&expected.metadata));
                failures +=
                    &format!("{} {request}:\n  is        {actual:?}\n  should be {expected:?}\n", case.name);
            }
        }
    }
    assert!(failures.is_empty(), "{failures}");
    assert!(same > 300, "most are the same to the letter: {same}");
}
