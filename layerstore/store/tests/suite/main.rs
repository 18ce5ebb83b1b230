//! Everything that sees this crate from outside, in one program: it links once.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking, and its helpers do too")]

mod collection;
mod common;
mod concurrency;
mod conformance;
mod content_files;
mod crash;
mod flushed;
mod full_disk;
mod images_model;
mod metadata;
mod records;
