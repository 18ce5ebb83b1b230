//! Flags of buildkitd's that say what a key of `buildkitd.toml` says: they are put into the file's values, and mean the same.
//!
//! `--addr`, `--root`, `--debug` and others that every daemon has are in [`crate::cli`].

use clap::{Arg, ArgAction, ArgMatches, Args, Command, FromArgMatches};
use toml::{Table, Value};

use crate::error::ProgramError;

/// What a flag's text becomes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Shape {
    /// `--x`, `--x=false`
    Switch,
    /// `--x=auto` says nothing.
    SwitchOrAuto,
    /// A text.
    Text,
    /// A text each time that it is given.
    List,
    /// `NAME=VALUE` each time that it is given: keys below the key.
    Pairs,
    /// A number.
    Number,
    /// `RESERVED[,FREE[,MOST]]` in megabytes: three keys beside each other, below the key.
    Megabytes,
    /// Nothing that a key says; it has no effect here.
    Nothing(&'static str),
}

use Shape::{List, Megabytes, Nothing, Number, Pairs, Switch, SwitchOrAuto, Text};

const NO_PROFILES: &str = "there are no profiles of Go programs";

/// Flags: name, shape, key, help. Those without are not shown; what is shown has an effect.
const FLAGS: &[(&str, Shape, &str, &str)] = &[
    ("oci-worker", SwitchOrAuto, "worker.oci.enabled", ""),
    ("oci-worker-labels", Pairs, "worker.oci.labels", ""),
    (
        "oci-worker-snapshotter",
        Text,
        "worker.oci.snapshotter",
        "How layers are kept: auto, overlayfs or native",
    ),
    ("oci-worker-proxy-snapshotter-path", Text, "worker.oci.proxySnapshotterPath", ""),
    ("oci-worker-platform", List, "worker.oci.platforms", ""),
    (
        "oci-worker-net",
        Text,
        "worker.oci.networkMode",
        "Network of steps that ask for none: auto, bridge, host or none",
    ),
    ("oci-cni-config-path", Text, "worker.oci.cniConfigPath", ""),
    ("oci-cni-binary-dir", Text, "worker.oci.cniBinaryPath", ""),
    ("oci-cni-pool-size", Number, "worker.oci.cniPoolSize", "Networks kept ready for steps"),
    (
        "oci-worker-binary",
        Text,
        "worker.oci.binary",
        "OCI runtime in place of the built-in executor, as --oci-runtime",
    ),
    ("oci-worker-apparmor-profile", Text, "worker.oci.apparmor-profile", ""),
    ("oci-worker-selinux", Switch, "worker.oci.selinux", ""),
    ("oci-max-parallelism", Number, "worker.oci.max-parallelism", "Steps that run at once"),
    ("oci-worker-rootless", Switch, "worker.oci.rootless", ""),
    ("rootless", Switch, "worker.oci.rootless", ""),
    ("oci-worker-no-process-sandbox", Switch, "worker.oci.noProcessSandbox", ""),
    ("oci-worker-gc", Switch, "worker.oci.gc", "Prune the cache without being asked"),
    (
        "oci-worker-gc-keepstorage",
        Megabytes,
        "worker.oci",
        "How much the cache may take, in MB: RESERVED[,FREE[,MOST]]",
    ),
    ("containerd-worker", SwitchOrAuto, "worker.containerd.enabled", ""),
    ("containerd-worker-addr", Text, "worker.containerd.address", ""),
    ("containerd-worker-labels", Pairs, "worker.containerd.labels", ""),
    ("containerd-worker-platform", List, "worker.containerd.platforms", ""),
    ("containerd-worker-namespace", Text, "worker.containerd.namespace", ""),
    ("containerd-worker-runtime", Text, "worker.containerd.runtime.name", ""),
    ("containerd-worker-net", Text, "worker.containerd.networkMode", ""),
    ("containerd-cni-config-path", Text, "worker.containerd.cniConfigPath", ""),
    ("containerd-cni-binary-dir", Text, "worker.containerd.cniBinaryPath", ""),
    ("containerd-cni-pool-size", Number, "worker.containerd.cniPoolSize", ""),
    ("containerd-worker-snapshotter", Text, "worker.containerd.snapshotter", ""),
    ("containerd-worker-apparmor-profile", Text, "worker.containerd.apparmor-profile", ""),
    ("containerd-worker-selinux", Switch, "worker.containerd.selinux", ""),
    ("containerd-max-parallelism", Number, "worker.containerd.max-parallelism", ""),
    ("containerd-worker-rootless", Switch, "worker.containerd.rootless", ""),
    ("containerd-worker-gc", Switch, "worker.containerd.gc", ""),
    ("containerd-worker-gc-keepstorage", Megabytes, "worker.containerd", ""),
    ("debugaddr", Text, "grpc.debugAddress", ""),
    ("proxy-network", Switch, "proxyNetwork", ""),
    ("otel-socket-path", Text, "otel.socketPath", ""),
    ("save-cache-debug", Nothing("lapstrake history inspect tells why steps ran"), "", ""),
    ("profile-cpu", Nothing(NO_PROFILES), "", ""),
    ("profile-memory", Nothing(NO_PROFILES), "", ""),
    ("profile-memoryrate", Nothing(NO_PROFILES), "", ""),
    ("profile-block", Nothing(NO_PROFILES), "", ""),
    ("profile-mutex", Nothing(NO_PROFILES), "", ""),
    ("profile-trace", Nothing(NO_PROFILES), "", ""),
];

/// A flag that was given, with its values.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct KeyFlag {
    /// Without the dashes.
    pub(crate) flag: &'static str,
    shape: Shape,
    key: &'static str,
    values: Vec<String>,
}

/// Those of the flags that were given.
#[derive(Debug, Clone, Default)]
pub(crate) struct BuildkitdFlags(pub(crate) Vec<KeyFlag>);

impl BuildkitdFlags {
    /// What was given and has no effect.
    pub(crate) fn doubts(&self) -> impl Iterator<Item = String> {
        self.0.iter().filter_map(|flag| match flag.shape {
            Nothing(why) => Some(format!("--{} is not honoured: {why}", flag.flag)),
            _ => None,
        })
    }
}

impl Args for BuildkitdFlags {
    fn augment_args(command: Command) -> Command {
        let command = command.next_help_heading("As of buildkitd");
        let command = FLAGS.iter().fold(command, |command, (name, shape, _, help)| {
            let arg = Arg::new(name).long(name).action(ArgAction::Append);
            let arg = match shape {
                Switch | SwitchOrAuto => {
                    arg.num_args(0..=1).require_equals(true).default_missing_value("true")
                }
                // A value that is not wanted is still a value.
                Nothing(_) => arg.num_args(0..=1).require_equals(true).default_missing_value(""),
                Text | List | Pairs | Number | Megabytes => arg.num_args(1),
            };
            let value_name = match shape {
                Switch | SwitchOrAuto | Nothing(_) => "true|false",
                Text | List => "VALUE",
                Pairs => "NAME=VALUE",
                Number => "COUNT",
                Megabytes => "MB",
            };
            let arg = arg.value_name(value_name);
            command.arg(if help.is_empty() { arg.hide(true) } else { arg.help(help) })
        });
        command.next_help_heading(None)
    }

    fn augment_args_for_update(command: Command) -> Command {
        Self::augment_args(command)
    }
}

impl FromArgMatches for BuildkitdFlags {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, clap::Error> {
        let given = FLAGS.iter().filter_map(|(flag, shape, key, _)| {
            let values = matches.get_many::<String>(flag)?.cloned().collect();
            Some(KeyFlag { flag, shape: *shape, key, values })
        });
        Ok(Self(given.collect()))
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        *self = Self::from_arg_matches(matches)?;
        Ok(())
    }
}

impl KeyFlag {
    /// Puts what the flag says over what a file says.
    pub(crate) fn put_into(&self, table: &mut Table) -> Result<(), ProgramError> {
        let wrong = |why: String| ProgramError::setting(format!("--{}", self.flag), why);
        let last = self.values.last().map_or("", String::as_str);
        match self.shape {
            Switch => put(table, self.key, Value::Boolean(switch(last).map_err(wrong)?)),
            SwitchOrAuto if last.is_empty() || last.eq_ignore_ascii_case("auto") => {}
            SwitchOrAuto => put(table, self.key, Value::Boolean(switch(last).map_err(wrong)?)),
            Text => put(table, self.key, Value::String(last.to_owned())),
            List => {
                let list = self.values.iter().cloned().map(Value::String).collect();
                put(table, self.key, Value::Array(list));
            }
            Number => {
                let number: i64 = last.parse().map_err(|_| wrong(format!("{last:?} is no number")))?;
                put(table, self.key, Value::Integer(number));
            }
            Pairs => {
                for pair in &self.values {
                    let (name, value) =
                        pair.split_once('=').ok_or_else(|| wrong(format!("{pair:?} is not NAME=VALUE")))?;
                    below(table, self.key).insert(name.to_owned(), Value::String(value.to_owned()));
                }
            }
            Megabytes => {
                let table = below(table, self.key);
                let mut sizes = last.splitn(3, ',').map(|size| {
                    let bytes = size.parse::<i64>().ok().and_then(|size| size.checked_mul(1_000_000));
                    bytes
                        .filter(|bytes| *bytes >= 0)
                        .ok_or_else(|| wrong(format!("{size:?} is no size in MB")))
                });
                // Also those that are not said: the flag is all three.
                for key in ["reservedSpace", "minFreeSpace", "maxUsedSpace"] {
                    table.insert(key.to_owned(), Value::Integer(sizes.next().transpose()?.unwrap_or(0)));
                }
            }
            Nothing(_) => {}
        }
        Ok(())
    }
}

/// A truth as Go's `strconv.ParseBool` reads it.
pub(crate) fn switch(text: &str) -> Result<bool, String> {
    match text {
        "1" | "t" | "T" | "true" | "TRUE" | "True" => Ok(true),
        "0" | "f" | "F" | "false" | "FALSE" | "False" => Ok(false),
        other => Err(format!("{other:?} is neither true nor false")),
    }
}

fn put(table: &mut Table, key: &str, value: Value) {
    match key.rsplit_once('.') {
        Some((above, name)) => below(table, above).insert(name.to_owned(), value),
        None => table.insert(key.to_owned(), value),
    };
}

/// The table at a key. What else is there gives way: only a wrong file has it, and such a file was refused before.
fn below<'a>(table: &'a mut Table, key: &str) -> &'a mut Table {
    key.split('.').fold(table, |table, name| {
        let entry = table.entry(name).or_insert_with(|| Value::Table(Table::new()));
        if !entry.is_table() {
            *entry = Value::Table(Table::new());
        }
        entry.as_table_mut().expect("it was made one")
    })
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;
    use crate::{
        cli::Cli,
        config::keys::{self, Fate},
    };

    /// Of BuildKit 0.32.2: cmd/buildkitd, with both workers, and util/profiler.
    const BUILDKITS: &str = "rootless config debug trace root addr log-format log-level group debugaddr tlscert tlskey tlscacert \
        allow-insecure-entitlement proxy-network otel-socket-path cdi-disabled cdi-spec-dir save-cache-debug \
        oci-worker oci-worker-labels oci-worker-snapshotter oci-worker-proxy-snapshotter-path oci-worker-platform \
        oci-worker-net oci-cni-config-path oci-cni-binary-dir oci-cni-pool-size oci-worker-binary \
        oci-worker-apparmor-profile oci-worker-selinux oci-max-parallelism oci-worker-rootless \
        oci-worker-no-process-sandbox oci-worker-gc oci-worker-gc-keepstorage \
        containerd-worker containerd-worker-addr containerd-worker-labels containerd-worker-platform \
        containerd-worker-namespace containerd-worker-runtime containerd-worker-net containerd-cni-config-path \
        containerd-cni-binary-dir containerd-cni-pool-size containerd-worker-snapshotter \
        containerd-worker-apparmor-profile containerd-worker-selinux containerd-max-parallelism \
        containerd-worker-rootless containerd-worker-gc containerd-worker-gc-keepstorage \
        profile-cpu profile-memory profile-memoryrate profile-block profile-mutex profile-trace version help";

    #[test]
    fn no_flag_of_buildkitds_is_unknown() {
        let mut cli = Cli::command();
        cli.build();
        let daemon = cli.find_subcommand("daemon").unwrap();
        let known: Vec<&str> =
            daemon.get_arguments().filter_map(|arg| arg.get_long_and_visible_aliases()).flatten().collect();
        for flag in BUILDKITS.split_whitespace() {
            assert!(known.contains(&flag), "--{flag}");
            let page = include_str!("../../../../docs/buildkitd.md");
            let is_told =
                flag == "help" || flag.starts_with("containerd-") || page.contains(&format!("`--{flag}`"));
            assert!(is_told, "--{flag} is not in docs/buildkitd.md");
        }
    }

    #[test]
    fn what_flags_say_keys_say() {
        for (flag, shape, key, help) in FLAGS {
            let key = match shape {
                Pairs => format!("{key}.x"),
                Megabytes => format!("{key}.reservedSpace"),
                Nothing(_) => continue,
                _ => (*key).to_owned(),
            };
            let fate = keys::fate(&key);
            assert!(fate.is_some(), "--{flag}: {key}");
            assert!(help.is_empty() || fate == Some(Fate::Honoured), "--{flag} is shown, and does nothing");
        }
    }

    #[test]
    fn sizes_are_three_in_megabytes() {
        let put = |text: &str| {
            let flag = KeyFlag { flag: "f", shape: Megabytes, key: "w", values: vec![text.to_owned()] };
            let mut table: Table = toml::from_str("[w]\nmaxUsedSpace = \"9GB\"\n").unwrap();
            flag.put_into(&mut table).map(|()| toml::to_string(&table).unwrap()).map_err(|e| e.to_string())
        };
        let bytes = |reserved, free, most| {
            Ok(format!("[w]\nmaxUsedSpace = {most}\nminFreeSpace = {free}\nreservedSpace = {reserved}\n"))
        };
        assert_eq!(put("9"), bytes(9_000_000, 0, 0));
        assert_eq!(put("9,8"), bytes(9_000_000, 8_000_000, 0));
        assert_eq!(put("9,8,7"), bytes(9_000_000, 8_000_000, 7_000_000));
        for wrong in ["", "9,8,7,6", "9GB", "-1", "9223372036854775807"] {
            assert!(put(wrong).unwrap_err().contains("in MB"), "{wrong}");
        }
    }
}
