//! BuildKit's JSON: that of Go's `encoding/json`, with its messages as their Go structs are tagged.

use std::collections::BTreeMap;

use base64::Engine as _;
use lapstrake_builder_llb::pb;
use serde::Serialize;

use crate::location::LineRange;

/// Pretty-printed, and escaped for HTML as Go does.
pub(super) fn encode<T: Serialize>(value: &T) -> String {
    let text = serde_json::to_string_pretty(value).expect("strings, numbers, and maps with strings as keys");
    let mut out = String::with_capacity(text.len());
    for ch in text.chars() {
        match ch {
            // They occur in strings only.
            '<' | '>' | '&' | '\u{2028}' | '\u{2029}' => out.push_str(&format!("\\u{:04x}", ch as u32)),
            ch => out.push(ch),
        }
    }
    out
}

pub(super) fn base64(bytes: &[u8]) -> String {
    base64::engine::general_purpose::STANDARD.encode(bytes)
}

fn is_zero(number: &i32) -> bool {
    *number == 0
}

fn is_false(on: &bool) -> bool {
    !on
}

#[derive(Serialize)]
struct Position {
    #[serde(skip_serializing_if = "is_zero")]
    line: i32,
    #[serde(skip_serializing_if = "is_zero")]
    character: i32,
}

#[derive(Serialize)]
struct Range {
    #[serde(skip_serializing_if = "Option::is_none")]
    start: Option<Position>,
    #[serde(skip_serializing_if = "Option::is_none")]
    end: Option<Position>,
}

/// `pb.Location`
#[derive(Serialize, Default)]
pub(super) struct Location {
    #[serde(rename = "sourceIndex", skip_serializing_if = "is_zero")]
    source_index: i32,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    ranges: Vec<Range>,
}

impl Location {
    /// One range per line.
    pub(super) fn of(places: &[LineRange]) -> Location {
        let position =
            |line: u32| Some(Position { line: i32::try_from(line).unwrap_or(i32::MAX), character: 0 });
        let mut lines: Vec<u32> = places.iter().flat_map(|place| place.lines()).collect();
        lines.sort_unstable();
        lines.dedup();
        let ranges = lines.into_iter().map(|line| Range { start: position(line), end: position(line) });
        Location { source_index: 0, ranges: ranges.collect() }
    }

    fn of_proto(location: &pb::Location) -> Location {
        let position =
            |position: &pb::Position| Position { line: position.line, character: position.character };
        let range = |range: &pb::Range| Range {
            start: range.start.as_ref().map(position),
            end: range.end.as_ref().map(position),
        };
        Location { source_index: location.source_index, ranges: location.ranges.iter().map(range).collect() }
    }
}

/// `pb.SourceInfo`
#[derive(Serialize)]
pub(super) struct SourceInfo {
    #[serde(skip_serializing_if = "String::is_empty")]
    filename: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    data: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    definition: Option<Definition>,
    #[serde(skip_serializing_if = "String::is_empty")]
    language: String,
}

/// `errdefs.Source`: places in a file at which something is wrong.
pub fn source_json(info: &pb::SourceInfo, ranges: &[pb::Range]) -> Vec<u8> {
    #[derive(Serialize)]
    struct Source {
        info: SourceInfo,
        #[serde(skip_serializing_if = "Vec::is_empty")]
        ranges: Vec<Range>,
    }
    let location = pb::Location { source_index: 0, ranges: ranges.to_vec() };
    let source = Source { info: SourceInfo::of(info), ranges: Location::of_proto(&location).ranges };
    serde_json::to_vec(&source).expect("strings, numbers, and maps with strings as keys")
}

impl SourceInfo {
    pub(super) fn of(info: &pb::SourceInfo) -> SourceInfo {
        SourceInfo {
            filename: info.filename.clone(),
            data: base64(&info.data),
            definition: info.definition.as_ref().map(Definition::of),
            language: info.language.clone(),
        }
    }
}

#[derive(Serialize)]
struct Definition {
    #[serde(skip_serializing_if = "Vec::is_empty")]
    def: Vec<String>,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    metadata: BTreeMap<String, OpMetadata>,
    #[serde(rename = "Source", skip_serializing_if = "Option::is_none")]
    source: Option<Source>,
}

#[derive(Serialize)]
struct OpMetadata {
    #[serde(skip_serializing_if = "is_false")]
    ignore_cache: bool,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    description: BTreeMap<String, String>,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    caps: BTreeMap<String, bool>,
}

#[derive(Serialize)]
struct Source {
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    locations: BTreeMap<String, Locations>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    infos: Vec<SourceInfo>,
}

#[derive(Serialize)]
struct Locations {
    #[serde(skip_serializing_if = "Vec::is_empty")]
    locations: Vec<Location>,
}

impl Definition {
    fn of(definition: &pb::Definition) -> Definition {
        let metadata = definition.metadata.iter().map(|(digest, metadata)| {
            let metadata = OpMetadata {
                ignore_cache: metadata.ignore_cache,
                description: metadata.description.clone().into_iter().collect(),
                caps: metadata.caps.clone().into_iter().collect(),
            };
            (digest.clone(), metadata)
        });
        let source = definition.source.as_ref().map(|source| Source {
            locations: source
                .locations
                .iter()
                .map(|(digest, locations)| {
                    let locations = locations.locations.iter().map(Location::of_proto).collect();
                    (digest.clone(), Locations { locations })
                })
                .collect(),
            infos: source.infos.iter().map(SourceInfo::of).collect(),
        });
        Definition {
            def: definition.def.iter().map(|op| base64(op)).collect(),
            metadata: metadata.collect(),
            source,
        }
    }
}
