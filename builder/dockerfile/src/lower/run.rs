//! `RUN`.

use std::collections::BTreeMap;

use lapstrake_builder_llb::{
    CacheSharing, Device, EnvList, ExecOptions, FileAction, Mkdir, Mkfile, Mount, MountKind, OpOptions,
    Owner, SecretMount, SshMount, State, clean_path, join_path, pb,
};

use super::dispatch::At;
use super::metadata::with_shell;
use super::naming::expanded;
use super::{LowerError, Lowered, Lowering, path};
use crate::instructions::{self, CommandLine, MountType, Network, Run, Security};
use crate::options::Channel;
use crate::parser::{heredoc_word, strip_leading_tabs};
use crate::shell::{Lexer, Quotes, Unset, Variables};

/// Where a script in a heredoc is mounted.
const PIPES: &str = "/dev/pipes/";

impl Lowering<'_> {
    pub(super) fn run_command(&mut self, at: &At, run: &Run, sources: &[usize], code: &str) -> Lowered<()> {
        if self.os(at.stage) == path::WINDOWS {
            return Err(LowerError::Unsupported("RUN for Windows".to_owned()).at(at.lines));
        }
        // What a process reads cannot be told.
        let paths = self.stages[at.stage].paths;
        self.used_paths[paths].insert("/".to_owned());

        let mut exec = ExecOptions { proxy: self.proxy_env(), ..ExecOptions::default() };
        let mut shown = code.to_owned();
        exec.args = self.run_words(at, run, &mut exec, &mut shown);
        let mounts = self.resolve_mounts(at, run)?;
        for (mount, &source) in mounts.iter().zip(sources) {
            self.add_mount(at, mount, source, &mut exec)?;
        }
        exec.security = Some(match run.security {
            Security::Sandbox => pb::SecurityMode::Sandbox,
            Security::Insecure => pb::SecurityMode::Insecure,
        });
        exec.network = match run.network {
            Network::Default => None,
            Network::None => Some(pb::NetMode::None),
            Network::Host => Some(pb::NetMode::Host),
        };
        exec.ulimits = self.options.ulimits.clone();
        exec.extra_hosts = self.options.extra_hosts.clone();
        exec.cgroup_parent = self.options.cgroup_parent.clone();
        if !run.devices.is_empty() && self.options.channel(&self.facts.dockerfile) != Channel::Labs {
            return Err(LowerError::DevicesAreLabs.at(at.lines));
        }
        let devices = run.devices.iter();
        exec.devices = devices.map(|d| Device { name: d.name.clone(), optional: !d.required }).collect();
        if self.options.shm_size > 0 {
            exec.mounts.push(Mount {
                target: "/dev/shm".to_owned(),
                source: State::scratch(),
                selector: String::new(),
                read_only: false,
                kind: MountKind::Tmpfs { size: self.options.shm_size },
            });
        }

        let state = self.stages[at.stage].state.clone();
        let env = state.meta().env.clone();
        let lexer = Lexer { quotes: Quotes::Keep, unset: Unset::Keep, ..self.lexer };
        let name = expanded(&shown, &lexer, &MaskedSecrets::new(&env, &mounts));
        let name = self.step_name(at.stage, &name, state.meta().platform.as_ref(), Some(&env));
        exec.op = OpOptions::named(name);
        exec.op.metadata.ignore_cache = self.stages[at.stage].ignore_cache;
        exec.op.metadata.description.insert("com.docker.dockerfile.v1.command".to_owned(), code.to_owned());
        exec.op.locations.push(self.location(at.lines));

        let created_by = match self.is_classic() {
            true => self.classic_run_history(at.stage, &exec.args),
            false => self.run_history(at, &exec.args, &env),
        };
        self.last_run = exec.args.clone();
        let outputs = self.graph.run(&state, exec);
        self.set_state(at.stage, outputs.root);
        if self.is_classic() {
            // What flags and scripts bring is not in the text.
            let complete = run.flags_used.is_empty() && run.heredocs.is_empty();
            self.commit_classic(at.stage, created_by, true, complete, None);
        } else {
            self.commit(at.stage, created_by, true);
        }
        Ok(())
    }

    /// The words to execute; heredocs become part of the command, or a script that is mounted.
    fn run_words(&mut self, at: &At, run: &Run, exec: &mut ExecOptions, shown: &mut String) -> Vec<String> {
        let text = match &run.command {
            CommandLine::Exec(words) => return words.clone(),
            CommandLine::Shell(text) => text,
        };
        let Some(first) = run.heredocs.first() else {
            return with_shell(&self.stages[at.stage].image, text);
        };
        // Anything but one heredoc alone is for the shell to read.
        if !matches!(heredoc_word(text), Ok(Some(_))) {
            let mut text = text.clone();
            for heredoc in &run.heredocs {
                text.push('\n');
                text.push_str(&heredoc.content);
                text.push_str(&heredoc.name);
            }
            return with_shell(&self.stages[at.stage].image, &text);
        }
        shown.push_str(&format!(" ({})", summary(&first.content)));
        let data = match first.strip_tabs {
            true => strip_leading_tabs(&first.content),
            false => first.content.clone(),
        };
        if !data.starts_with("#!") {
            return with_shell(&self.stages[at.stage].image, &data);
        }
        let mkfile =
            Mkfile { path: first.name.clone(), mode: 0o755, data: data.into_bytes(), ..Mkfile::default() };
        let mut options = OpOptions::internal("preparing inline document");
        options.platform = self.stages[at.stage].platform.clone();
        let source = self.graph.file(&State::scratch(), vec![FileAction::Mkfile(mkfile)], options);
        exec.mounts.push(Mount {
            target: PIPES.to_owned(),
            source,
            selector: "/".to_owned(),
            read_only: true,
            kind: MountKind::Bind,
        });
        // Before a shell the file's path is a command like any other.
        with_shell(&self.stages[at.stage].image, &join_path(&[PIPES, &first.name]))
    }

    fn resolve_mounts(&mut self, at: &At, run: &Run) -> Lowered<Vec<instructions::Mount>> {
        let env = self.stages[at.stage].state.meta().env.clone();
        let mut missing = Vec::new();
        let lexer = self.lexer;
        let mut expand = |word: &str| {
            let mut unset = std::collections::BTreeSet::new();
            let value = lexer.expand_noting(word, &env, &mut unset);
            missing.push(unset);
            value
        };
        let mounts = run.mounts.iter().map(|mount| mount.resolve(&mut expand));
        let mounts = mounts.collect::<Result<Vec<_>, _>>().map_err(|e| LowerError::Mount(e).at(at.lines));
        for missing in missing {
            self.check_undefined(at, missing, &env);
        }
        mounts
    }

    fn add_mount(
        &mut self,
        at: &At,
        mount: &instructions::Mount,
        source: usize,
        exec: &mut ExecOptions,
    ) -> Lowered<()> {
        match mount.kind {
            MountType::Secret => {
                let secret = secret(mount);
                self.capture_secret(at, &secret.id, mount.required);
                exec.secrets.push(secret);
                return Ok(());
            }
            MountType::Ssh => {
                exec.ssh.push(ssh(mount).map_err(|e| e.at(at.lines))?);
                self.capture_ssh(at, &mount.id, mount.required);
                return Ok(());
            }
            MountType::Bind | MountType::Cache | MountType::Tmpfs => {}
        }
        // A cache starts empty unless it says otherwise; anything else comes from the build context.
        let from_stage = !mount.from.is_empty() || mount.kind == MountType::Cache;
        let mut state = if from_stage { self.stages[source].state.clone() } else { self.context.clone() };
        if from_stage && !self.stages[source].dispatched {
            let (from, target) = (mount.from.clone(), mount.target.clone());
            return Err(LowerError::MountFromLater { from, target }.at(at.lines));
        }
        let mut target = mount.target.clone();
        if !clean_path(&target).starts_with('/') {
            target = join_path(&["/", &self.stages[at.stage].state.meta().dir, &target]);
        }
        if target == "/" {
            return Err(LowerError::MountTarget(target).at(at.lines));
        }
        let kind = match mount.kind {
            MountType::Tmpfs => {
                state = State::scratch();
                MountKind::Tmpfs { size: mount.size_limit }
            }
            MountType::Cache => {
                let id = if mount.id.is_empty() { clean_path(&mount.target) } else { mount.id.clone() };
                MountKind::Cache {
                    id: format!("{}/{id}", self.options.cache_mount_namespace),
                    sharing: match mount.sharing {
                        None | Some(instructions::CacheSharing::Shared) => CacheSharing::Shared,
                        Some(instructions::CacheSharing::Private) => CacheSharing::Private,
                        Some(instructions::CacheSharing::Locked) => CacheSharing::Locked,
                    },
                }
            }
            _ if mount.read_only => MountKind::Bind,
            _ => MountKind::BindNoOutput,
        };
        let mut selector = join_path(&["/", &mount.source]);
        if selector == "/" {
            selector.clear();
            if mount.uid.is_some() || mount.gid.is_some() || mount.mode.is_some() {
                state = self.cache_directory(mount, &state);
                "/cache".clone_into(&mut selector);
            }
        }
        exec.mounts.push(Mount { target, source: state, selector, read_only: mount.read_only, kind });
        let used = join_path(&["/", &mount.source]);
        if from_stage {
            let paths = self.stages[source].paths;
            self.used_paths[paths].insert(used);
        } else {
            self.stages[at.stage].context_paths.insert(used);
        }
        Ok(())
    }

    /// A directory with the owner and mode that a cache is to start with.
    fn cache_directory(&mut self, mount: &instructions::Mount, state: &State) -> State {
        let mkdir = Mkdir {
            path: "/cache".to_owned(),
            mode: mount.mode.unwrap_or(0o755),
            owner: Some(Owner::ids(mount.uid.unwrap_or(0), mount.gid.unwrap_or(0))),
            ..Mkdir::default()
        };
        let options = OpOptions::internal("setting cache mount permissions");
        self.graph.file(state, vec![FileAction::Mkdir(mkdir)], options)
    }

    /// `RUN |2 A=1 B=2 /bin/sh -c … # buildkit`: with the arguments that it saw.
    fn run_history(&self, at: &At, args: &[String], env: &EnvList) -> String {
        let mut order: Vec<String> = Vec::new();
        let mut place: BTreeMap<&str, usize> = BTreeMap::new();
        for (key, value) in &self.stages[at.stage].args {
            let value = env.get(key).or(value.as_deref()).unwrap_or_default();
            let text = format!("{key}={value}");
            match place.get(key.as_str()) {
                Some(&at) => order[at] = text,
                None => {
                    place.insert(key, order.len());
                    order.push(text);
                }
            }
        }
        let count = (!order.is_empty()).then(|| format!("|{}", order.len()));
        let words: Vec<&str> = count.iter().chain(&order).chain(args).map(String::as_str).collect();
        format!("RUN {} # buildkit", words.join(" "))
    }
}

/// The first line of a heredoc.
fn summary(content: &str) -> String {
    let text = content.trim();
    match text.split_once('\n') {
        Some((first, _)) => format!("{}...", first.strip_suffix('\r').unwrap_or(first)),
        None => text.to_owned(),
    }
}

fn secret(mount: &instructions::Mount) -> SecretMount {
    let mut id = if mount.source.is_empty() { mount.id.clone() } else { mount.source.clone() };
    if id.is_empty() {
        // `resolve` refuses a secret with neither name nor target.
        path::base(&mount.target).clone_into(&mut id);
    }
    let target = match (&mount.env, mount.target.as_str()) {
        (Some(_), "") => None,
        (None, "") => Some(format!("/run/secrets/{}", path::base(&id))),
        (_, target) => Some(target.to_owned()),
    };
    SecretMount {
        id,
        target,
        env: mount.env.clone(),
        uid: mount.uid.unwrap_or(0),
        gid: mount.gid.unwrap_or(0),
        mode: mount.mode.unwrap_or(0o400),
        optional: !mount.required,
    }
}

fn ssh(mount: &instructions::Mount) -> Result<SshMount, LowerError> {
    if !mount.source.is_empty() {
        return Err(LowerError::SshSource);
    }
    Ok(SshMount {
        id: mount.id.clone(),
        target: mount.target.clone(),
        uid: mount.uid.unwrap_or(0),
        gid: mount.gid.unwrap_or(0),
        mode: mount.mode.unwrap_or(0o600),
        optional: !mount.required,
    })
}

/// The environment, with variables that hold secrets shown as such.
struct MaskedSecrets<'a> {
    env: &'a EnvList,
    masked: Vec<&'a str>,
}

impl<'a> MaskedSecrets<'a> {
    fn new(env: &'a EnvList, mounts: &'a [instructions::Mount]) -> MaskedSecrets<'a> {
        let secrets = mounts.iter().filter(|mount| mount.kind == MountType::Secret);
        MaskedSecrets { env, masked: secrets.filter_map(|mount| mount.env.as_deref()).collect() }
    }
}

impl Variables for MaskedSecrets<'_> {
    fn get(&self, name: &str) -> Option<&str> {
        if self.masked.contains(&name) { Some("****") } else { self.env.get(name) }
    }
}
