//! Everything that sees this crate from outside, in one program: it links once.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking, and its helpers do too")]

mod architecture;
mod attestations;
mod bridge;
mod building;
mod cache_faults;
mod caches;
mod concurrency;
mod contexts;
mod disk_full;
mod entitlements;
mod failed_steps;
mod interchange;
mod platforms;
mod pruning;
mod raw_llb;
mod reasons;
