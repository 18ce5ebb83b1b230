//! The `lapstrake` program: configuration, sockets, signals. It constructs everything and decides nothing.
//!
//! ```text
//!   main ─► executor's helper, or what maps ids for ordinary users? (re-execs of this program: never return)
//!        └► command line ─► daemon      settings ─► assembly ─► listeners ─► api/server, until a signal
//!                          build       the same assembly, one build in this process, no sockets
//!                          df, prune, history   a daemon's API, or the store itself when no daemon has it open
//!                          debug       what a Dockerfile becomes, without building it
//!                          completion  for a shell
//! ```
//!
//! This crate is not for: HTTP (`api/server`), running builds (`builder/engine`), or anything that a second program would need.

#![deny(unsafe_code)]

mod assembly;
mod blocking;
mod bridge;
mod build;
mod cli;
mod client;
mod config;
mod daemon;
mod debug;
mod error;
mod history;
mod host;
mod inherited;
mod listen;
mod logging;
mod memory;
mod notify;
mod platforms;
mod process;
mod provenance;
mod rootless;
mod settings;
mod sweeper;
mod tls;
mod usage;

use std::process::ExitCode;

use clap::Parser as _;

use crate::{cli::Command, error::ProgramError};

fn main() -> ExitCode {
    // Before anything else: a helper has one thread and needs nothing of what follows.
    lapstrake_builder_executor::maybe_run_helper();
    rootless::maybe_map_ids();
    let cli = cli::Cli::parse();
    match run(cli) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("lapstrake: {}", error::chain(&error));
            ExitCode::FAILURE
        }
    }
}

fn run(cli: cli::Cli) -> Result<ExitCode, ProgramError> {
    match cli.command {
        Command::Daemon(args) => daemon::run(&args).map(|()| ExitCode::SUCCESS),
        Command::Build(args) => build::run(&args),
        Command::Df(args) => usage::df(&args).map(|()| ExitCode::SUCCESS),
        Command::Prune(args) => usage::prune(&args).map(|()| ExitCode::SUCCESS),
        Command::History(args) => history::run(&args).map(|()| ExitCode::SUCCESS),
        Command::Debug(args) => debug::run(&args).map(|()| ExitCode::SUCCESS),
        Command::Platforms => platforms::run().map(|()| ExitCode::SUCCESS),
        Command::Completion { shell } => {
            say(&cli::completion(shell));
            Ok(ExitCode::SUCCESS)
        }
    }
}

/// Writes to standard output. A reader that is gone (`| head`) has read enough.
fn say(text: &str) {
    use std::io::Write as _;
    let _ = std::io::stdout().write_all(text.as_bytes());
}
