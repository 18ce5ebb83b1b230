//! Everything that sees this crate from outside, in one program: it links once.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking, and its helpers do too")]

mod apply;
mod common;
mod compression;
mod hostile;
mod memory;
mod other_tars;
mod round_trip;
