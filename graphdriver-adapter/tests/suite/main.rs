//! Everything that sees this crate from outside, in one program: it links once.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking, and its helpers do too")]

mod conformance;
mod crash;
mod layout;
mod shared;
