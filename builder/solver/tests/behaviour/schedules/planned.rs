//! The vertices of one build, and what is to come of them.

use lapstrake_layerstore_oci::Digest;

use super::drawn::{Kind, Sketch, Variant};

#[derive(Debug, Clone)]
pub(super) struct Planned {
    pub(super) name: String,
    pub(super) key: String,
    /// What its values begin with.
    pub(super) yields: String,
    pub(super) kind: Kind,
    pub(super) inputs: Vec<usize>,
    pub(super) content: Vec<usize>,
    pub(super) looks: bool,
    pub(super) ignore_cache: bool,
    /// Whether its work is to be done at most once at a time, whoever wants it.
    pub(super) once: bool,
    pub(super) value: String,
}

pub(super) fn plan(sketches: &[Sketch], variant: &Variant, number: u32) -> Vec<Planned> {
    let target = variant.target.map_or(sketches.len() - 1, |target| target.index(sketches.len()));
    let mut planned: Vec<Planned> = Vec::new();
    for (at, sketch) in sketches.iter().enumerate().take(target + 1) {
        let bit = |bits: u32| bits >> (at % 32) & 1;
        let (name, key) = match sketch.kind {
            Kind::Context => (format!("context{at}-{number}"), format!("files{}", bit(variant.contents))),
            Kind::Image => (format!("image{at}-{}", bit(variant.aliases)), format!("image{at}")),
            Kind::Rebuilt => {
                let which = bit(variant.aliases) * 2 + bit(variant.contents);
                (format!("rebuilt{at}-{which}"), format!("rebuilt{at}-{which}"))
            }
            Kind::Step => (format!("step{at}"), format!("step{at}")),
        };
        let inputs = if sketch.kind == Kind::Step { sketch.inputs.clone() } else { Vec::new() };
        let by_content = |input: &usize| {
            planned[inputs[*input]].kind == Kind::Context || sketch.content >> (input % 8) & 1 == 1
        };
        let content: Vec<usize> = (0..inputs.len()).filter(by_content).collect();
        let ignore_cache = bit(variant.no_cache) == 1 && sketch.kind == Kind::Step;
        let known = |input: usize| content.contains(&input) || planned[inputs[input]].once;
        let is_source = matches!(sketch.kind, Kind::Context | Kind::Rebuilt);
        let once = !is_source && !ignore_cache && (0..inputs.len()).all(known);
        let values: Vec<&str> = inputs.iter().map(|input| planned[*input].value.as_str()).collect();
        let yields = match sketch.kind {
            Kind::Rebuilt => format!("rebuilt{at} as {}", bit(variant.contents)),
            Kind::Context | Kind::Image | Kind::Step => key.clone(),
        };
        let value = Digest::sha256_of(format!("{yields}({})", values.join(",")).as_bytes()).to_string();
        let looks = sketch.looks;
        planned.push(Planned {
            name,
            key,
            yields,
            kind: sketch.kind,
            inputs,
            content,
            looks,
            ignore_cache,
            once,
            value,
        });
    }
    planned
}
