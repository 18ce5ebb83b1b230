//! Frontends that call back: clients that are one, images that are one, and what neither may do.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking, and its helpers do too")]

mod containers;
mod files;
mod images;
mod solving;
mod support;
