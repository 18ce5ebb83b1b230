//! Runs one [`BuildRequest`]: plan, solve, snapshot, export.

#![forbid(unsafe_code)]

mod request;

pub use request::{
    BuildId, BuildOutcome, BuildRequest, ContextInput, Destination, Input, Output, Resources,
};
