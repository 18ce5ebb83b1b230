//! What a target takes.

use serde::Serialize;

use super::json::{self, Location};
use super::table::table;
use super::{Reply, SubrequestAnswer};
use crate::Error;
use crate::facts::Facts;
use crate::lint::Warning;
use crate::lower::{self, Inspected, Outline};
use crate::options::DockerfileOptions;

#[derive(Serialize)]
struct Shown {
    #[serde(skip_serializing_if = "String::is_empty")]
    name: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    description: String,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    args: Vec<Arg>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    secrets: Vec<Offer>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    ssh: Vec<Offer>,
    sources: [String; 1],
}

#[derive(Serialize)]
struct Arg {
    name: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    description: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    value: String,
    location: Location,
}

#[derive(Serialize)]
struct Offer {
    name: String,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    required: bool,
    location: Location,
}

pub(super) fn outline(
    options: &DockerfileOptions,
    facts: &Facts,
    warnings: &mut Vec<Warning>,
) -> Result<SubrequestAnswer, Error> {
    let outline = match lower::outline(options, facts, warnings)? {
        Inspected::Need(needs) => return Ok(SubrequestAnswer::Need(needs)),
        Inspected::Done(outline) => outline,
    };
    let Outline { name, description, args, secrets, ssh } = outline;
    let args = args.into_iter().map(|arg| Arg {
        name: arg.name,
        description: arg.description,
        value: arg.value,
        location: Location::of(&[arg.lines]),
    });
    let offer = |offer: lower::OutlineOffer| Offer {
        name: offer.id,
        required: offer.required,
        location: Location::of(&[offer.lines]),
    };
    let shown = Shown {
        name,
        description,
        args: args.collect(),
        secrets: secrets.into_iter().map(offer).collect(),
        ssh: ssh.into_iter().map(offer).collect(),
        sources: [json::base64(&facts.dockerfile)],
    };
    Ok(SubrequestAnswer::Reply(Reply::new(json::encode(&shown), text(&shown))))
}

fn text(shown: &Shown) -> String {
    let mut out = String::new();
    let mut add = |rows: Vec<String>| {
        rows.iter().for_each(|row| out.push_str(row));
        out.push('\n');
    };
    if !shown.name.is_empty() || !shown.description.is_empty() {
        let name = if shown.name.is_empty() { "(default)" } else { &shown.name };
        let mut rows = vec![["TARGET:".to_owned(), name.to_owned()]];
        if !shown.description.is_empty() {
            rows.push(["DESCRIPTION:".to_owned(), shown.description.clone()]);
        }
        add(vec![table(&rows, 1)]);
    }
    if !shown.args.is_empty() {
        let mut rows = vec![["BUILD ARG", "VALUE", "DESCRIPTION"].map(str::to_owned)];
        rows.extend(
            shown.args.iter().map(|arg| [arg.name.clone(), arg.value.clone(), arg.description.clone()]),
        );
        add(vec![table(&rows, 3)]);
    }
    for (title, offers) in [("SECRET", &shown.secrets), ("SSH", &shown.ssh)] {
        if offers.is_empty() {
            continue;
        }
        let mut rows = vec![[title, "REQUIRED"].map(str::to_owned)];
        rows.extend(offers.iter().map(|offer| {
            let required = if offer.required { "true" } else { "" };
            [offer.name.clone(), required.to_owned()]
        }));
        add(vec![table(&rows, 3)]);
    }
    out
}
