//! Where a build's files come from, and what a client is asked for: with a client that keeps a record.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod epochs;
mod frontends;
mod layouts;
mod named;
mod support;
mod transfer;
