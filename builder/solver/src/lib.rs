//! Schedules the ops of a graph, and finds cached results.
//!
//! ```text
//!   Graph (builder/llb) ──load──► Build ──resolve──► Resolved { value, keys }
//!                                   │
//!                                 Node, one per vertex, shared by every build that has the vertex
//!                                   cache_map ─► fast keys ─► full keys ─► inputs ─► exec      each at most once at a time
//!                                                     └────── CacheStore: links between keys, results of keys ──────┘
//! ```
//!
//! The solver does not know what an op does or what a result is: see [`Op`] and [`Types`]. It does no I/O of its own.
//!
//! # How a result is found
//!
//! A result is known by *keys*. An op without inputs has the key `digest@output` of its cache map. Any other op's keys are found by
//! following *links*: a link leads from a key of an input to a key of the op, and carries the input's number, the op's digest,
//! the output and a selector. A key belongs to the op when links lead to it from every input.
//!
//! 1. **fast**: keys by definition alone. Nothing is executed or fetched, except what ops without inputs do to know themselves.
//! 2. **full**: where that finds nothing, inputs whose *content* counts (a directory that files are copied from) are resolved, and
//!    the digest of the content is one more key to follow links from.
//! 3. **exec**: where that finds nothing either, all inputs are resolved, the op runs, and its result and links are saved.
//!
//! Before an op runs it is told why it has to ([`Op::missed`]).
//!
//! Whatever is found first ends the search, so inputs of a cached op are not resolved. What is found by content gets links from the inputs'
//! other keys too, so that it is found by definition from then on. This is BuildKit's scheme
//! (`solver/edge.go`, `solver/cachemanager.go`), as tasks instead of a state machine.

//! # What concurrent builds share
//!
//! Whatever is the same is done once at a time and told to all who wait: results, and failures too. A failure is also that of every build
//! that has the vertex already and gets there later; a build that begins after it tries again. Only a failure for which the op looked at its
//! builds ([`OpContext::scopes`]) is not held against builds that it did not see, or when one of those it saw went away.

#![forbid(unsafe_code)]

mod cache;
mod error;
mod flight;
mod keys;
mod node;
mod op;
mod run;
mod scopes;
mod solver;

pub use cache::{CacheStore, CacheStoreError, KeyId, Link, MemoryCache};
pub use error::SolveError;
pub use op::{Alias, CacheMap, Dep, InputKeys, Miss, MissCause, Op, OpContext, Types};
pub use solver::{Build, Resolved, Solver};
