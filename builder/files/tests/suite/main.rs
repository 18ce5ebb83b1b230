//! Everything that sees this crate from outside, in one program: it links once.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking, and its helpers do too")]

mod actions;
mod common;
mod copies;
mod digests;
mod hostile;
mod layers;
mod links;
