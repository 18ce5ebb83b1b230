//! What is drawn by lot: a graph, how each build differs from it, and what happens.

use proptest::prelude::*;

#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Kind {
    /// A client's directory, another one for each build, with one of few contents.
    Context,
    /// A source that has two names.
    Image,
    /// What is made anew under one of four keys, and comes to one of two contents.
    Rebuilt,
    Step,
}

/// One vertex, before a build makes it its own.
#[derive(Debug, Clone)]
pub(super) struct Sketch {
    pub(super) kind: Kind,
    pub(super) inputs: Vec<usize>,
    /// Inputs that count by content, as bits.
    pub(super) content: u8,
    /// Whether its op looks at its builds.
    pub(super) looks: bool,
}

/// What is a build's own.
#[derive(Debug, Clone)]
pub(super) struct Variant {
    pub(super) contents: u32,
    pub(super) aliases: u32,
    pub(super) no_cache: u32,
    /// Its last vertex, where it does not want the whole graph.
    pub(super) target: Option<prop::sample::Index>,
}

/// What happens next.
#[derive(Debug, Clone)]
pub(super) enum Deed {
    /// A gate opens; the op fails or does not.
    Open { which: prop::sample::Index, fails: bool },
    /// The next build begins.
    Begin,
    /// A build is given up.
    Drop(prop::sample::Index),
    /// A client vanishes while its build goes on.
    Vanish(prop::sample::Index),
    /// Results are pruned.
    Prune(u32),
}

pub(super) fn sketches() -> impl Strategy<Value = Vec<Sketch>> {
    let sketch =
        (0u8..7, prop::collection::vec(any::<prop::sample::Index>(), 1..4), any::<u8>(), any::<bool>());
    prop::collection::vec(sketch, 2..10).prop_map(|drawn| {
        let mut sketches: Vec<Sketch> = Vec::new();
        for (at, (kind, inputs, content, looks)) in drawn.into_iter().enumerate() {
            let kind = match (at, kind) {
                (0, 0..3) | (_, 0) => Kind::Context,
                (_, 6) => Kind::Rebuilt,
                (0, _) | (_, 1) => Kind::Image,
                _ => Kind::Step,
            };
            let mut inputs: Vec<usize> = inputs.iter().map(|input| input.index(at.max(1))).collect();
            // Most stand on what is before them, so that much of the graph is needed.
            inputs.push(at.saturating_sub(1));
            inputs.sort_unstable();
            inputs.dedup();
            sketches.push(Sketch { kind, inputs, content, looks });
        }
        sketches
    })
}

pub(super) fn variants() -> impl Strategy<Value = Vec<Variant>> {
    let bits = || prop_oneof![Just(0), any::<u32>()];
    let no_cache = prop_oneof![6 => Just(0), 1 => any::<u32>(), 1 => Just(u32::MAX)];
    let variant = (bits(), bits(), no_cache, prop::option::of(any::<prop::sample::Index>()));
    let variant = variant.prop_map(|(contents, aliases, no_cache, target)| Variant {
        contents,
        aliases,
        no_cache,
        target,
    });
    prop::collection::vec(variant, 2..6)
}

pub(super) fn deeds() -> impl Strategy<Value = Vec<(u8, Deed)>> {
    let index = any::<prop::sample::Index>;
    let deed = prop_oneof![
        10 => (index(), 0u8..8).prop_map(|(which, fails)| Deed::Open { which, fails: fails == 0 }),
        4 => Just(Deed::Begin),
        1 => index().prop_map(Deed::Drop),
        1 => index().prop_map(Deed::Vanish),
        1 => any::<u32>().prop_map(Deed::Prune),
    ];
    prop::collection::vec((0u8..12, deed), 0..60)
}
