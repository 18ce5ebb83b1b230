//! Which stages can be built.

use serde::Serialize;

use super::{Reply, json, json::Location, table::table};
use crate::Error;
use crate::facts::Facts;
use crate::instructions::Dockerfile;
use crate::lint::Config;

#[derive(Serialize)]
struct List {
    targets: Vec<Target>,
    sources: [String; 1],
}

#[derive(Serialize)]
struct Target {
    #[serde(skip_serializing_if = "String::is_empty")]
    name: String,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    default: bool,
    #[serde(skip_serializing_if = "String::is_empty")]
    description: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    base: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    platform: String,
    location: Location,
}

pub(super) fn targets(facts: &Facts) -> Result<Reply, Error> {
    // Lint options, good or bad, do not matter.
    let dockerfile = Dockerfile::parse_with_lint(&facts.dockerfile, Config::default())?;
    let last = dockerfile.stages.len() - 1;
    let stages = dockerfile.stages.into_iter().enumerate();
    let targets = stages.map(|(number, stage)| Target {
        name: stage.name.unwrap_or_default(),
        default: number == last,
        description: stage.doc_comment.unwrap_or_default(),
        base: stage.base,
        platform: stage.platform.unwrap_or_default(),
        location: Location::of(&[stage.source.lines]),
    });
    let list = List { targets: targets.collect(), sources: [json::base64(&facts.dockerfile)] };
    let mut rows = vec![["TARGET", "DESCRIPTION"].map(str::to_owned)];
    rows.extend(list.targets.iter().map(|target| {
        let name = match (target.name.as_str(), target.default) {
            ("", true) => "(default)".to_owned(),
            (name, true) => format!("{name} (default)"),
            (name, false) => name.to_owned(),
        };
        [name, target.description.clone()]
    }));
    Ok(Reply::new(json::encode(&list), table(&rows, 1)))
}
