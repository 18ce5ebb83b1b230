//! What was built: a record and the complete log of each build, and why each step was run.
//!
//! ```text
//!   Engine ── begin ──► Recording ── notes: reasons, recipes ─┐
//!                          │ end (outcome)                    ▼
//!   spool ── read when the build has ended ──► history/<id>.zst, then one row per build ──► builds, build, log
//!
//!   documents (why it failed, what is attested) ── attach ──► rows of their own, found by digest
//!
//!   a step is missed ── Place ──► the Recipe of its last run there ── compare ──► MissReasons
//! ```
//!
//! A *recipe* is what decided what a step made, in terms that a person can name: the instruction, variables, mounts, files. Values are
//! kept as marks (a piece of a digest): no build-arg, secret or file is in the database.
//!
//! This crate is not for: deciding what is run (`builder/solver`), finding out what a step is made of (`builder/engine`), or showing
//! records to clients (`api/server`).

#![forbid(unsafe_code)]

mod attachment;
mod compare;
mod documents;
mod error;
mod history;
mod listing;
mod log;
mod mark;
mod notes;
mod place;
mod reason;
mod recipe;
mod record;
mod recording;
mod rows;
mod schema;
mod trace;

pub use attachment::{Attachment, AttachmentKind, AttachmentRecord};
pub use compare::compare;
pub use documents::Document;
pub use error::HistoryError;
pub use history::{Building, History, Limits, News, Outcome};
pub use listing::Listing;
pub use log::BuildLog;
pub use mark::Mark;
pub use notes::{BuildNotes, Explained, PackedRecipe};
pub use place::{Place, Project};
pub use reason::{Change, FileChange, MissReason, describe};
pub use recipe::{Aspect, Ingredient, IngredientKind, Recipe, Variable};
pub use record::{
    BuildRecord, BuildStatus, BuildSummary, LogRecord, OutputRecord, ResultRecord, VertexRecord,
};
pub use recording::Recording;
