//! The Dockerfile frontend: text in, graph out. Pure: bytes and facts come in as arguments, and nothing here reads a file, talks to
//! a network or asks for the time.
//!
//! ```text
//!               parser                instructions                 lower
//! Dockerfile ──► lines, heredocs ──► typed syntax tree + warnings ──► LLB graph, image config
//!                                        ▲    shell: ${variables} ──┘
//! .dockerignore ──► ignore::PatternMatcher ──► used by whoever walks a build context
//! ```
//!
//! Not for: fetching base images' configs (lowering says what it needs and is resumed), running anything, or rendering warnings.

pub mod error;
pub mod excerpt;
pub mod facts;
pub mod ignore;
pub mod instructions;
pub mod lint;
pub mod location;
mod lower;
mod mark;
pub mod options;
pub mod parser;
pub mod plan;
pub mod shell;
pub mod subrequest;
mod text;

pub use error::Error;
pub use facts::{
    CopyQuery, CopySource, EpochSource, Facts, ImageFact, ImageOrigin, ImageQuery, Need, Place, Restored,
};
pub use location::LineRange;
pub use lower::{
    LowerError, dockerfile_definition, dockerfile_name, dockerignore_definition, git_in_one_form, source_info,
};
pub use options::{Dialect, DockerfileOptions};
pub use plan::{
    Answer, ClassicPlan, Plan, Planning, PlatformPlan, StageEntry, StageHistory, Step, StepKind, plan,
    plan_and_warn,
};
pub use text::parse_bool;
