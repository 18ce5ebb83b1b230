//! Where a build's files come from, and what a client is asked for: with a client that keeps a record.

mod epochs;
mod frontends;
mod layouts;
mod named;
mod support;
mod transfer;
