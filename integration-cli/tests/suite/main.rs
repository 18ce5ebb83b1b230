//! Everything that sees this crate from outside, in one program: it links once.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking, and its helpers do too")]

mod abuse;
mod attestations;
mod bollard;
mod bollard_grpc;
mod caches;
mod classic;
mod common;
mod compose;
mod contexts;
mod crash;
mod docker_build;
mod docker_images;
mod docker_py;
mod docker_ssh;
mod dockerd;
mod entitlements;
mod errors;
mod failed_steps;
mod git_sources;
mod grpc;
mod grpc_tls;
mod history;
mod history_grpc;
mod hostile;
mod hostile_grpc;
mod hosts;
mod http;
mod http_sources;
mod interrupts;
mod limits;
mod networks;
mod other_parts;
mod outputs;
mod parity;
mod platforms;
mod policies_grpc;
mod prune;
mod registry;
mod requests_grpc;
mod rootless;
mod secrets;
