//! What the solver promises, over ops whose results are texts.

mod schedules;
mod sharing;
mod solving;
mod support;
