//! The command line.

use std::{net::IpAddr, path::PathBuf};

use clap::{Args, CommandFactory as _, Parser, Subcommand};
use clap_complete::Shell;
use lapstrake_builder_cache::PruneBound;
use lapstrake_builder_engine::{EngineError, Entitlement};
use lapstrake_graphdriver_adapter::DriverKind;

use crate::{
    build::args::{BuildArgs, bytes},
    config::{BuildkitdFlags, switch},
    debug::DebugArgs,
    history::HistoryArgs,
    host::Host,
    logging::{LogFormat, LogLevel},
};

/// Builds container images for every Docker client, without dockerd, buildkitd or runc.
#[derive(Debug, Parser)]
#[command(name = "lapstrake", version, arg_required_else_help = true, max_term_width = 120)]
pub(crate) struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Serve the Docker Engine API and BuildKit's: point DOCKER_HOST, a docker context or BUILDKIT_HOST at it
    #[command(version)]
    Daemon(Box<DaemonArgs>),
    /// Build an image here and now, without a daemon
    Build(Box<BuildArgs>),
    /// Show what images and the build cache take on disk
    Df(DfArgs),
    /// Remove what the build cache can make again
    Prune(PruneArgs),
    /// Show what was built, complete logs, and why steps ran
    History(HistoryArgs),
    /// Show what becomes of a Dockerfile, without building it
    Debug(DebugArgs),
    /// List the platforms whose RUN steps can be run on this machine
    #[command(after_help = "Others need an emulator: apt-get install qemu-user-static binfmt-support")]
    Platforms,
    /// Print a completion script for a shell
    #[command(after_help = "Example:\n  lapstrake completion bash > /etc/bash_completion.d/lapstrake")]
    Completion {
        /// The shell
        shell: Shell,
    },
}

/// What the store is opened with.
#[derive(Debug, Args)]
pub(crate) struct StoreArgs {
    /// Directory of images, layers and cache [default: /var/lib/lapstrake; for others than root,
    /// $XDG_DATA_HOME/lapstrake]
    #[arg(long, value_name = "DIR", env = "LAPSTRAKE_ROOT")]
    pub(crate) root: Option<PathBuf>,

    /// Configuration, in the format of BuildKit's buildkitd.toml [default: /etc/lapstrake/buildkitd.toml where it exists]
    #[arg(long, value_name = "FILE")]
    pub(crate) config: Option<PathBuf>,

    /// How layers are kept: overlay2 or vfs [default: overlay2 where it works]
    #[arg(long, value_name = "DRIVER", value_parser = driver)]
    pub(crate) storage_driver: Option<DriverKind>,

    /// Run processes with this OCI runtime (runc, crun) in place of the built-in executor
    #[arg(long, value_name = "PATH")]
    pub(crate) oci_runtime: Option<PathBuf>,

    /// Which system calls RUN may make: an OCI seccomp profile in Docker's JSON format [default: Docker's own]
    #[arg(long, value_name = "FILE")]
    pub(crate) seccomp_profile: Option<PathBuf>,

    /// What host-gateway means in --add-host; one IPv4 and one IPv6 address [default: the address at which RUN reaches this
    /// machine]
    #[arg(long, value_name = "IP")]
    pub(crate) host_gateway_ip: Vec<IpAddr>,

    /// Name server for RUN; may be repeated [default: this machine's]
    #[arg(long, value_name = "IP")]
    pub(crate) dns: Vec<IpAddr>,

    /// Resolver option for RUN, such as ndots:2; may be repeated [default: this machine's]
    #[arg(long, value_name = "OPTION")]
    pub(crate) dns_opt: Vec<String>,

    /// Domain that RUN searches for names without dots; may be repeated [default: this machine's]
    #[arg(long, value_name = "DOMAIN")]
    pub(crate) dns_search: Vec<String>,

    /// Log what helps to find out why something failed: as --log-level debug
    #[arg(long, short = 'D', num_args = 0..=1, require_equals = true, default_missing_value = "true", value_name = "BOOL",
        value_parser = switch, default_value = "false", hide_default_value = true)]
    pub(crate) debug: bool,

    /// As --log-level trace
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true", value_parser = switch,
        default_value = "false", hide = true)]
    pub(crate) trace: bool,

    /// How much is logged: error, warn, info, debug or trace [default: info]
    #[arg(long, value_name = "LEVEL")]
    pub(crate) log_level: Option<LogLevel>,

    /// How lines of the log are written
    #[arg(long, value_name = "FORMAT", value_enum)]
    pub(crate) log_format: Option<LogFormat>,
}

fn driver(text: &str) -> Result<DriverKind, String> {
    text.parse().map_err(|error: lapstrake_layerstore_store::StoreError| error.to_string())
}

fn entitlement(text: &str) -> Result<Entitlement, String> {
    text.parse().map_err(|error: EngineError| error.to_string())
}

#[derive(Debug, Args)]
#[command(
    after_help = "Takes the flags and the configuration of buildkitd: docs/buildkitd.md has all of them.

Examples:
  lapstrake daemon
  lapstrake daemon -H unix:///run/lapstrake/lapstrake.sock -H tcp://10.0.0.5:2376 \\
      --tlscacert ca.pem --tlscert server.pem --tlskey server-key.pem

Then, in another terminal:
  DOCKER_HOST=unix:///run/lapstrake/lapstrake.sock docker build .

Signals: SIGTERM and SIGINT cancel what is being built and end the daemon; a second one ends it at once."
)]
pub(crate) struct DaemonArgs {
    #[command(flatten)]
    pub(crate) store: StoreArgs,

    /// Listen here: unix:///path, tcp://address:port, or fd:// for systemd's sockets; may be repeated
    /// [default: unix:///run/lapstrake/lapstrake.sock; for others than root, unix://$XDG_RUNTIME_DIR/lapstrake/lapstrake.sock]
    #[arg(long, short = 'H', visible_alias = "addr", value_name = "HOST")]
    pub(crate) host: Vec<Host>,

    /// Group, by name or number, that may use unix sockets [default: docker, where there is one]
    #[arg(long, short = 'G', value_name = "GROUP")]
    pub(crate) group: Option<String>,

    /// Keep what a failed RUN leaves as an image, lapstrake-failed:ID, of builds that do not say it themselves; the newest ten stay
    #[arg(long)]
    pub(crate) keep_failed: bool,

    /// Let clients grant this to their builds: network.host, security.insecure or device; may be repeated, and goes before
    /// insecure-entitlements of the configuration [default: network.host and device]
    #[arg(long, value_name = "ENTITLEMENT", value_parser = entitlement)]
    pub(crate) allow_insecure_entitlement: Vec<Entitlement>,

    /// Offer no devices (CDI) to steps
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true", value_name = "BOOL", value_parser = switch,
        default_value = "false", hide_default_value = true)]
    pub(crate) cdi_disabled: bool,

    /// Read specifications of devices (CDI) here; may be repeated [default: /etc/cdi, /var/run/cdi, /etc/buildkit/cdi]
    #[arg(long, value_name = "DIR")]
    pub(crate) cdi_spec_dir: Vec<PathBuf>,

    /// Write the process id to this file
    #[arg(long, short = 'p', value_name = "FILE")]
    pub(crate) pidfile: Option<PathBuf>,

    /// Use TLS on TCP (implied by the options below)
    #[arg(long)]
    pub(crate) tls: bool,

    /// Use TLS on TCP and accept only clients with a certificate (implied by --tlscacert)
    #[arg(long)]
    pub(crate) tlsverify: bool,

    /// PEM file of the authority that clients' certificates come from
    #[arg(long, value_name = "FILE")]
    pub(crate) tlscacert: Option<PathBuf>,

    /// PEM file of the daemon's certificate
    #[arg(long, value_name = "FILE")]
    pub(crate) tlscert: Option<PathBuf>,

    /// PEM file of the key of the daemon's certificate
    #[arg(long, value_name = "FILE")]
    pub(crate) tlskey: Option<PathBuf>,

    /// Serve TCP without asking clients for a certificate: everybody who can connect is as good as root on this machine
    #[arg(long)]
    pub(crate) insecure_tcp: bool,

    #[command(flatten)]
    pub(crate) buildkitd: BuildkitdFlags,
}

#[derive(Debug, Args)]
pub(crate) struct DfArgs {
    #[command(flatten)]
    pub(crate) store: StoreArgs,

    /// Where the daemon listens that has the store open [default: where a daemon of the same user does]
    #[arg(long, short = 'H', value_name = "HOST")]
    pub(crate) host: Option<Host>,

    /// List every entry of the build cache
    #[arg(long, short = 'v')]
    pub(crate) verbose: bool,
}

#[derive(Debug, Args)]
#[command(after_help = "Filters (an entry must pass all of them):
  until=24h                    not used since then: a duration, or a time such as 2006-01-02T15:04:05
  id=REGEX                     its id, as df -v lists it
  type=TYPE                    regular, internal, frontend, source.local, source.git.checkout or exec.cachemount
  description=TEXT             what it is of
  parents=ID                   what it was made from
  inuse=, shared=, private=    true or false
A name that ends in ! must differ (type!=regular); one that ends in ~ is a regular expression (description~=apt-get).

What is in use, by a build or by anything made from it, always stays. The least recently used go first.

Examples:
  lapstrake prune
  lapstrake prune --all --images
  lapstrake prune --keep-storage 10g
  lapstrake prune --min-free-space 20g
  lapstrake prune --filter type=exec.cachemount --filter until=48h")]
pub(crate) struct PruneArgs {
    #[command(flatten)]
    pub(crate) store: StoreArgs,

    /// Where the daemon listens that has the store open [default: where a daemon of the same user does]
    #[arg(long, short = 'H', value_name = "HOST")]
    pub(crate) host: Option<Host>,

    /// Also entries that images share, and the builder's own
    #[arg(long, short = 'a')]
    pub(crate) all: bool,

    /// Also images without a name
    #[arg(long)]
    pub(crate) images: bool,

    /// Leave this much whatever else is said, such as 10g; alone: prune down to it
    #[arg(long, visible_alias = "reserved-space", value_name = "BYTES", value_parser = bytes)]
    pub(crate) keep_storage: Option<i64>,

    /// Prune until the cache takes at most this much
    #[arg(long, value_name = "BYTES", value_parser = bytes)]
    pub(crate) max_used_space: Option<i64>,

    /// Prune until this much of the disk is free
    #[arg(long, value_name = "BYTES", value_parser = bytes)]
    pub(crate) min_free_space: Option<i64>,

    /// Only what was not used for this long, such as 48h; the same as --filter until=48h
    #[arg(long, value_name = "DURATION")]
    pub(crate) keep_duration: Option<String>,

    /// Only entries like this; may be repeated
    #[arg(long, value_name = "NAME=VALUE")]
    pub(crate) filter: Vec<String>,

    /// List what was removed
    #[arg(long, short = 'v')]
    pub(crate) verbose: bool,
}

impl PruneArgs {
    /// What entries must be like, with --keep-duration among it.
    pub(crate) fn filters(&self) -> Vec<String> {
        let age = self.keep_duration.iter().map(|age| format!("until={age}"));
        self.filter.iter().cloned().chain(age).collect()
    }

    /// When to stop; 0 is no bound.
    pub(crate) fn bound(&self) -> PruneBound {
        let bytes = |given: Option<i64>| given.and_then(|bytes| u64::try_from(bytes).ok()).unwrap_or(0);
        PruneBound {
            reserved: bytes(self.keep_storage),
            max_used: bytes(self.max_used_space),
            min_free: bytes(self.min_free_space),
        }
    }
}

/// A shell's completion script.
pub(crate) fn completion(shell: Shell) -> String {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "lapstrake", &mut script);
    String::from_utf8_lossy(&script).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_sound() {
        Cli::command().debug_assert();
    }

    #[test]
    fn completion_knows_the_commands() {
        for shell in [Shell::Bash, Shell::Zsh, Shell::Fish] {
            let script = completion(shell);
            assert!(script.contains("daemon") && script.contains("build-arg"), "{shell}");
        }
    }
}
