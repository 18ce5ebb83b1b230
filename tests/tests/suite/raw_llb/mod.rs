//! Graphs as clients send them, without any Dockerfile: every kind of op and mount, source policies, and what must be refused.

mod execs;
mod hostile;
mod mounts;
mod policies;
mod sources;
mod support;
mod trees;
