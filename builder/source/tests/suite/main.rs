//! Everything that sees this crate from outside, in one program: it links once.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking, and its helpers do too")]

mod attestations;
mod common;
mod git;
mod git_bundle;
mod git_http;
mod git_repository;
mod git_signature;
mod git_ssh;
mod http;
mod image;
mod local;
#[allow(dead_code, reason = "these tests use a part of the session's client")]
#[path = "../../../../session/tests/suite/common/mod.rs"]
mod session;
