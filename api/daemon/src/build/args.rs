//! `lapstrake build`'s command line: docker's, where it applies.

use std::path::PathBuf;

use clap::{ArgAction, Args, ValueEnum};

use crate::cli::StoreArgs;

/// How progress is shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum ProgressMode {
    /// As a picture on a terminal, as lines elsewhere
    Auto,
    /// As lines
    Plain,
    /// As a picture that is drawn over itself
    Tty,
    /// As JSON, one object per line
    Rawjson,
    /// Not at all
    Quiet,
}

#[derive(Debug, Args)]
#[command(after_help = "Examples:
  lapstrake build -t app .
  lapstrake build --target test --build-arg VERSION=1 --secret id=token,env=TOKEN .
  lapstrake build -o type=local,dest=out https://example.org/app.git#main
  tar -c . | lapstrake build -t app -
  lapstrake build --check .
  lapstrake build --call=outline,format=json --target test .
  lapstrake build --build-context alpine=oci-layout:///srv/alpine:3 --build-context assets=../assets .
  lapstrake build --cache-to type=registry,ref=example.org/app:cache,mode=max --cache-from example.org/app:cache .

The store may be open in one process only: where a daemon has it open, build through the daemon
(DOCKER_HOST=unix:///run/lapstrake/lapstrake.sock docker build .) or use another --root.")]
pub(crate) struct BuildArgs {
    #[command(flatten)]
    pub(crate) store: StoreArgs,

    /// Directory, URL (git repository, archive or Dockerfile), or - for an archive or a Dockerfile on standard input
    #[arg(value_name = "CONTEXT")]
    pub(crate) context: String,

    /// Name the image name:tag; may be repeated
    #[arg(long, short = 't', value_name = "NAME")]
    pub(crate) tag: Vec<String>,

    /// Dockerfile [default: Dockerfile in the context]; - for standard input
    #[arg(long, short = 'f', value_name = "PATH")]
    pub(crate) file: Option<String>,

    /// Set an ARG; without =VALUE, from the environment
    #[arg(long, value_name = "NAME[=VALUE]")]
    pub(crate) build_arg: Vec<String>,

    /// Set a label of the image
    #[arg(long, value_name = "NAME=VALUE")]
    pub(crate) label: Vec<String>,

    /// Build this stage [default: the last one]
    #[arg(long, value_name = "STAGE")]
    pub(crate) target: Option<String>,

    /// Build for these platforms, such as linux/amd64,linux/arm64 [default: this machine's]; several make one image with an index
    #[arg(long, value_name = "PLATFORM,…", env = "DOCKER_DEFAULT_PLATFORM")]
    pub(crate) platform: Vec<String>,

    /// Run every step, whatever the cache has
    #[arg(long)]
    pub(crate) no_cache: bool,

    /// Run the steps of these stages, whatever the cache has
    #[arg(long, value_name = "STAGE,…", conflicts_with = "no_cache")]
    pub(crate) no_cache_filter: Option<String>,

    /// Ask registries for base images even if they are here
    #[arg(long)]
    pub(crate) pull: bool,

    /// Use this cache, too: a name in a registry, or type=registry,ref=NAME or type=local,src=DIRECTORY[,tag=TAG]; may be repeated
    #[arg(long, value_name = "CACHE")]
    pub(crate) cache_from: Vec<String>,

    /// Leave the cache of the build there: a name in a registry, or type=inline, type=registry,ref=NAME or type=local,dest=DIRECTORY,
    /// the latter two also with mode=max; may be repeated
    #[arg(long, value_name = "CACHE")]
    pub(crate) cache_to: Vec<String>,

    /// Use SOURCE for what the Dockerfile calls NAME in FROM, COPY --from and RUN --mount=from: a directory, docker-image://IMAGE,
    /// oci-layout://PATH (and :TAG or @DIGEST), or a URL (git repository or file); NAME::PLATFORM for one platform alone; may be repeated
    #[arg(long, value_name = "NAME=SOURCE")]
    pub(crate) build_context: Vec<String>,

    /// Network of RUN: default, none or host
    #[arg(long, value_name = "MODE", default_value = "default")]
    pub(crate) network: String,

    /// Add an entry to /etc/hosts for RUN
    #[arg(long, value_name = "HOST:IP")]
    pub(crate) add_host: Vec<String>,

    /// Offer a secret: id=ID[,src=FILE] or id=ID,env=VARIABLE
    #[arg(long, value_name = "SECRET")]
    pub(crate) secret: Vec<String>,

    /// Offer an ssh agent: default, or ID=SOCKET
    #[arg(long, value_name = "AGENT")]
    pub(crate) ssh: Vec<String>,

    /// What to leave behind; may be given several times: a directory, - for a tar on standard output, or type= with image, registry, local, tar, docker
    /// or oci, and dest=PATH, name=NAME, push=true and what else BuildKit's exporters know behind it
    #[arg(long, short = 'o', value_name = "OUTPUT")]
    pub(crate) output: Vec<String>,

    /// Push the image: -o type=registry
    #[arg(long)]
    pub(crate) push: bool,

    /// Keep what a failed RUN leaves as an image: NAME, or else lapstrake-failed:ID, of which the newest ten stay
    #[arg(long, value_name = "NAME", num_args = 0..=1, require_equals = true, default_missing_value = "")]
    pub(crate) keep_failed: Option<String>,

    /// Write the image's id to this file
    #[arg(long, value_name = "FILE")]
    pub(crate) iidfile: Option<PathBuf>,

    /// Accepted as docker has it, and nothing to do: steps leave no containers behind
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true", action = ArgAction::Set, hide_possible_values = true)]
    pub(crate) rm: Option<bool>,

    /// Accepted as docker has it, and nothing to do: failed steps leave no containers behind either
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true", action = ArgAction::Set, hide_possible_values = true)]
    pub(crate) force_rm: Option<bool>,

    /// Accepted as docker has it, and nothing to do: there is no daemon to send the context to
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true", action = ArgAction::Set, hide_possible_values = true)]
    pub(crate) compress: Option<bool>,

    /// Ask about the Dockerfile in place of building it: check (what is doubtful in it), outline (what arguments, secrets and agents the target
    /// takes) or targets (which stages there are); ,format=json behind it gives JSON
    #[arg(long, value_name = "METHOD", alias = "print", overrides_with = "call")]
    pub(crate) call: Option<String>,

    /// The same as --call=check: fails if anything is doubtful
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true", action = ArgAction::Set, hide_possible_values = true, conflicts_with = "call")]
    pub(crate) check: Option<bool>,

    /// Print the image's id and nothing else
    #[arg(long, short = 'q')]
    pub(crate) quiet: bool,

    /// How progress is shown, on standard error
    #[arg(long, value_enum, default_value = "auto", env = "BUILDKIT_PROGRESS")]
    pub(crate) progress: ProgressMode,

    /// Let steps do what they ask for: network.host (RUN --network=host), security.insecure (RUN --security=insecure), device for all
    /// devices (RUN --device), or device=NAME for one, with ,alias=OTHER behind it if the Dockerfile calls it so; may be repeated
    #[arg(long, value_name = "ENTITLEMENT")]
    pub(crate) allow: Vec<String>,

    /// Control group above those of RUN
    #[arg(long, value_name = "PATH")]
    pub(crate) cgroup_parent: Option<String>,

    /// Limit of RUN, such as nofile=1024:2048
    #[arg(long, value_name = "NAME=SOFT[:HARD]")]
    pub(crate) ulimit: Vec<String>,

    /// Size of /dev/shm for RUN, such as 64m
    #[arg(long, value_name = "BYTES", value_parser = bytes)]
    pub(crate) shm_size: Option<i64>,

    /// Memory of RUN, such as 512m
    #[arg(long, short = 'm', value_name = "BYTES", value_parser = bytes)]
    pub(crate) memory: Option<i64>,

    /// Memory and swap of RUN; -1 is unlimited
    #[arg(long, value_name = "BYTES", value_parser = bytes, allow_hyphen_values = true)]
    pub(crate) memory_swap: Option<i64>,

    /// Processor weight of RUN
    #[arg(long, short = 'c', value_name = "WEIGHT")]
    pub(crate) cpu_shares: Option<u64>,

    /// Period of the processor quota of RUN, in microseconds
    #[arg(long, value_name = "MICROSECONDS")]
    pub(crate) cpu_period: Option<u64>,

    /// Processor quota of RUN, in microseconds per period
    #[arg(long, value_name = "MICROSECONDS", allow_hyphen_values = true)]
    pub(crate) cpu_quota: Option<i64>,

    /// Processors that RUN may use, such as 0-3,5
    #[arg(long, value_name = "LIST")]
    pub(crate) cpuset_cpus: Option<String>,

    /// Processes and threads that a RUN may have; 0 and -1 are unlimited
    #[arg(long, value_name = "NUMBER", allow_hyphen_values = true)]
    pub(crate) pids_limit: Option<i64>,

    /// Memory nodes that RUN may use
    #[arg(long, value_name = "LIST")]
    pub(crate) cpuset_mems: Option<String>,
}

/// Docker's sizes: a number, and `b`, `k`, `m`, `g` or `t`, each 1024 of the one before; -1 as it is.
pub(crate) fn bytes(text: &str) -> Result<i64, String> {
    if text == "-1" {
        return Ok(-1);
    }
    let lower = text.to_ascii_lowercase();
    let lower = lower.strip_suffix('b').unwrap_or(&lower);
    let (digits, shift) = match lower.as_bytes().last() {
        Some(b'k') => (&lower[..lower.len() - 1], 10),
        Some(b'm') => (&lower[..lower.len() - 1], 20),
        Some(b'g') => (&lower[..lower.len() - 1], 30),
        Some(b't') => (&lower[..lower.len() - 1], 40),
        _ => (lower, 0),
    };
    let number: i64 = digits.parse().map_err(|_| "a size is a number and perhaps k, m, g or t".to_owned())?;
    if number < 0 {
        return Err("a size is not negative".to_owned());
    }
    number.checked_mul(1 << shift).ok_or_else(|| "larger than any disk".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_dockers() {
        for (text, expected) in
            [("0", 0), ("64", 64), ("64b", 64), ("2k", 2048), ("3MB", 3 << 20), ("1g", 1 << 30), ("-1", -1)]
        {
            assert_eq!(bytes(text), Ok(expected), "{text}");
        }
        for text in ["", "k", "-2", "1.5g", "9999999t", "x"] {
            assert!(bytes(text).is_err(), "{text}");
        }
    }
}
