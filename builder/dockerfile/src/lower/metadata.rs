//! Instructions that change the config, and files at most by the way.

use std::time::Duration;

use lapstrake_builder_llb::{FileAction, Mkdir, OpOptions, Owner};
use lapstrake_layerstore_oci::{Healthcheck as ImageHealthcheck, History, ImageConfig};

use super::dispatch::{At, is_scan_arg};
use super::naming::expanded;
use super::{LowerError, Lowered, Lowering, path};
use crate::instructions::{
    Arg, CommandLine, Env, Healthcheck, Instruction, KeyValue, Label, PairStyle, Volume, Workdir,
};
use crate::lint::Rule;
use crate::options::Dialect;
use crate::text::go_quote;

/// What BuildKit's frontend writes into the history of what it builds.
const HISTORY_COMMENT: &str = "buildkit.dockerfile.v0";

impl Lowering<'_> {
    /// Adds an entry to the history of a stage's image.
    pub(super) fn commit(&mut self, stage: usize, created_by: String, makes_layer: bool) {
        if self.is_classic() {
            let created_by = self.nop(stage, &created_by);
            return self.commit_classic(stage, created_by, makes_layer, true, None);
        }
        let entry = History {
            created: self.created(),
            created_by,
            comment: HISTORY_COMMENT.to_owned(),
            empty_layer: !makes_layer,
            ..History::default()
        };
        self.push_entry(stage, entry);
    }

    pub(super) fn push_entry(&mut self, stage: usize, entry: History) {
        self.spent += 128 + entry.created_by.len();
        let before = self.stages[stage].history.replace(self.history.len());
        self.history.push((entry, before));
    }

    /// All that need nothing but the config.
    pub(super) fn metadata(&mut self, at: &At, instruction: &Instruction, keyword: &str) -> Lowered<()> {
        let dialect = self.options.dialect;
        let created_by = match instruction {
            Instruction::Maintainer(m) => {
                self.stages[at.stage].image.author = m.maintainer.clone();
                format!("MAINTAINER {}", m.maintainer)
            }
            Instruction::Env(env) => self.env(at, env, keyword),
            Instruction::Label(label) => self.label(at, label, keyword),
            Instruction::Cmd(cmd) => {
                let before = self.stages[at.stage].cmd_seen.replace(at.lines);
                self.check_used_once(at, keyword, before);
                let args = self.command_words(at, &cmd.command, keyword);
                let created_by = format!("CMD {}", quoted_list(&args));
                let config = &mut self.stages[at.stage].image.config;
                config.cmd = Some(args);
                // Of Windows only, to the classic builder.
                config.args_escaped = dialect == Dialect::BuildKit;
                created_by
            }
            Instruction::Entrypoint(entrypoint) => {
                let before = self.stages[at.stage].entrypoint_seen.replace(at.lines);
                self.check_used_once(at, keyword, before);
                let args = self.command_words(at, &entrypoint.command, keyword);
                let created_by = format!("ENTRYPOINT {}", quoted_list(&args));
                let stage = &mut self.stages[at.stage];
                stage.image.config.entrypoint = Some(args);
                if dialect == Dialect::Classic {
                    stage.image.config.args_escaped = false;
                }
                // A command is arguments for the entrypoint: one that was inherited is for another.
                if stage.cmd_seen.is_none() {
                    stage.image.config.cmd = None;
                }
                created_by
            }
            Instruction::Healthcheck(health) => {
                let before = self.stages[at.stage].healthcheck_seen.replace(at.lines);
                self.check_used_once(at, keyword, before);
                let check = image_healthcheck(health);
                let text = match dialect {
                    Dialect::BuildKit => healthcheck_text(&check),
                    Dialect::Classic => classic_healthcheck_text(&check),
                };
                let created_by = format!("HEALTHCHECK {text}");
                self.stages[at.stage].image.config.healthcheck = Some(check);
                created_by
            }
            Instruction::User(user) => {
                let stage = &mut self.stages[at.stage];
                stage.image.config.user = user.user.clone();
                stage.state = stage.state.clone().map_meta(|meta| meta.user = user.user.clone());
                format!("USER {}", user.user)
            }
            Instruction::Volume(volume) => self.volume(at, volume)?,
            Instruction::StopSignal(stop) => {
                if !is_signal(&stop.signal) {
                    return Err(LowerError::Signal(stop.signal.clone()).at(at.lines));
                }
                self.stages[at.stage].image.config.stop_signal = stop.signal.clone();
                format!("STOPSIGNAL {}", stop.signal)
            }
            Instruction::Shell(shell) => {
                self.stages[at.stage].image.config.shell = shell.shell.clone();
                format!("SHELL [{}]", shell.shell.join(" "))
            }
            Instruction::Onbuild(onbuild) => {
                // For whoever builds from this; no history, but the classic builder's.
                self.stages[at.stage].image.config.on_build.push(onbuild.expression.clone());
                if dialect == Dialect::BuildKit {
                    return Ok(());
                }
                format!("ONBUILD {}", onbuild.expression)
            }
            Instruction::Add(_)
            | Instruction::Arg(_)
            | Instruction::Copy(_)
            | Instruction::Expose(_)
            | Instruction::Run(_)
            | Instruction::Workdir(_) => unreachable!("dispatched elsewhere"),
        };
        self.commit(at.stage, created_by, false);
        Ok(())
    }

    fn env(&mut self, at: &At, env: &Env, keyword: &str) -> String {
        let mut created_by = "ENV".to_owned();
        for pair in &env.pairs {
            self.check_pair(at, pair, keyword);
            self.check_secret_name(at, "ENV", &pair.key);
            created_by.push_str(&format!(" {}={}", pair.key, pair.value));
            let stage = &mut self.stages[at.stage];
            stage.state = stage.state.clone().with_env(&pair.key, &pair.value);
            self.spent += 32 * stage.state.meta().env.len();
            let variable = format!("{}={}", pair.key, pair.value);
            let env = &mut stage.image.config.env;
            match env.iter_mut().find(|known| known.split('=').next() == Some(&pair.key)) {
                Some(known) => *known = variable,
                None => env.push(variable),
            }
        }
        created_by
    }

    fn label(&mut self, at: &At, label: &Label, keyword: &str) -> String {
        let mut created_by = "LABEL".to_owned();
        for pair in &label.pairs {
            self.check_pair(at, pair, keyword);
            created_by.push_str(&format!(" {}={}", pair.key, pair.value));
            self.stages[at.stage].image.config.labels.insert(pair.key.clone(), pair.value.clone());
        }
        created_by
    }

    fn check_pair(&mut self, at: &At, pair: &KeyValue, keyword: &str) {
        if pair.style == PairStyle::Legacy {
            let message = format!(
                "\"{keyword} key=value\" should be used instead of legacy \"{keyword} key value\" format"
            );
            self.warn(at, Rule::LegacyKeyValueFormat, message);
        }
    }

    fn volume(&mut self, at: &At, volume: &Volume) -> Lowered<String> {
        if volume.paths.iter().any(String::is_empty) {
            return Err(LowerError::EmptyVolume.at(at.lines));
        }
        self.stages[at.stage].image.config.volumes.extend(volume.paths.iter().cloned());
        Ok(format!("VOLUME [{}]", volume.paths.join(" ")))
    }

    /// The words of `CMD` or `ENTRYPOINT`: a shell form is given to the shell.
    fn command_words(&mut self, at: &At, command: &CommandLine, keyword: &str) -> Vec<String> {
        match command {
            CommandLine::Exec(words) => words.clone(),
            CommandLine::Shell(text) => {
                if self.stages[at.stage].image.config.shell.is_empty() {
                    let message = format!(
                        "JSON arguments recommended for {keyword} to prevent unintended behavior related to OS signals"
                    );
                    self.warn(at, Rule::JSONArgsRecommended, message);
                }
                with_shell(&self.stages[at.stage].image, text)
            }
        }
    }

    /// `ARG`: the client's value, else the global one, else the default.
    pub(super) fn arg(&mut self, at: &At, arg: &Arg) -> Lowered<()> {
        let mut texts = Vec::with_capacity(arg.declarations.len());
        for declaration in &arg.declarations {
            let key = &declaration.key;
            self.check_secret_name(at, "ARG", key);
            self.used_args.insert(key.clone());
            let value = match (self.build_args.get(key), &declaration.value) {
                (Some(given), _) => Some(given.clone()),
                (None, Some(default)) => {
                    let env = self.stages[at.stage].state.meta().env.clone();
                    let expansion = self.lexer.expand(default, &env);
                    let expansion = expansion.map_err(|e| LowerError::Word(e).at(at.lines))?;
                    self.check_undefined(at, expansion.missing, &env);
                    Some(expansion.value)
                }
                (None, None) => self.global_args.get(key).map(str::to_owned),
            };
            if self.is_classic() {
                texts.push(self.classic_declaration(at, key, declaration.value.as_deref())?);
            }
            let classic = self.is_classic();
            let stage = &mut self.stages[at.stage];
            // The classic builder lets ENV win over an ARG that comes after it.
            let shadowed = classic
                && stage.image.config.env.iter().any(|known| known.split('=').next() == Some(key.as_str()));
            if let Some(value) = &value
                && !is_scan_arg(key)
                && !shadowed
            {
                stage.state = stage.state.clone().with_env(key, value);
                self.spent += value.len() + 32 * stage.state.meta().env.len();
            }
            if !classic {
                texts.push(match &value {
                    Some(value) => format!("{key}={value}"),
                    None => key.clone(),
                });
            }
            let is_global = declaration.value.is_none() && !self.build_args.contains_key(key);
            let is_global = is_global && value.is_some();
            self.capture_arg(at, declaration, value.as_deref(), is_global);
            self.stages[at.stage].args.push((key.clone(), value));
        }
        self.commit(at.stage, format!("ARG {}", texts.join(" ")), false);
        Ok(())
    }

    /// An `ARG` as the classic history has it: with its default, whatever value it has.
    fn classic_declaration(&self, at: &At, key: &str, default: Option<&str>) -> Lowered<String> {
        let Some(default) = default else { return Ok(key.to_owned()) };
        let env = &self.stages[at.stage].state.meta().env;
        let expansion = self.lexer.expand(default, env).map_err(|e| LowerError::Word(e).at(at.lines))?;
        Ok(format!("{key}={}", expansion.value))
    }

    /// `WORKDIR`: makes the directory, too.
    pub(super) fn workdir(&mut self, at: &At, workdir: &Workdir, code: &str) -> Lowered<()> {
        let os = self.os(at.stage).to_owned();
        let wanted = path::of_os(&os, &workdir.path, false);
        let is_absolute = wanted.as_ref().is_ok_and(|path| path.starts_with('/'));
        if !self.stages[at.stage].workdir_set && !is_absolute {
            let message = format!(
                "Relative workdir {} can have unexpected results if the base image changes",
                go_quote(&workdir.path)
            );
            self.warn(at, Rule::WorkdirRelativePath, message);
        }
        let stage = &mut self.stages[at.stage];
        stage.workdir_set = true;
        let wanted = wanted.map_err(|error| error.at(at.lines))?;
        let current = path::of_os(&os, &stage.image.config.working_dir, false);
        let current = current.map_err(|error| error.at(at.lines))?;
        let dir = path::normalize(&current, &wanted, false);
        stage.image.config.working_dir = path::in_config(&os, &dir);
        stage.state = stage.state.clone().with_dir(&dir);
        if dir == "/" {
            self.commit(at.stage, format!("WORKDIR {dir}"), false);
            return Ok(());
        }
        let user = Some(stage.image.config.user.as_str()).filter(|user| !user.is_empty());
        let mkdir = Mkdir {
            path: dir.clone(),
            mode: 0o755,
            make_parents: true,
            owner: user.map(Owner::parse),
            timestamp: self.epoch.and_then(|epoch| epoch.checked_mul(1_000_000_000)),
        };
        let env = stage.state.meta().env.clone();
        let platform = stage.platform.clone();
        let name = expanded(code, &self.lexer, &env);
        let mut options = OpOptions::named(self.step_name(at.stage, &name, platform.as_ref(), Some(&env)));
        options.locations.push(self.location(at.lines));
        options.platform = platform;
        let state = self.stages[at.stage].state.clone();
        let state = self.graph.file(&state, vec![FileAction::Mkdir(mkdir)], options);
        self.set_state(at.stage, state);
        self.commit(at.stage, format!("WORKDIR {dir}"), true);
        Ok(())
    }
}

/// A command line for the image's shell.
pub(super) fn with_shell(image: &ImageConfig, text: &str) -> Vec<String> {
    let mut words = match &image.config.shell[..] {
        [] if image.os == path::WINDOWS => ["cmd", "/S", "/C"].map(str::to_owned).into(),
        [] => vec!["/bin/sh".to_owned(), "-c".to_owned()],
        shell => shell.to_vec(),
    };
    words.push(text.to_owned());
    words
}

/// Go's `%q` of a list.
fn quoted_list(words: &[String]) -> String {
    let words: Vec<String> = words.iter().map(|word| go_quote(word)).collect();
    format!("[{}]", words.join(" "))
}

fn image_healthcheck(health: &Healthcheck) -> ImageHealthcheck {
    let Healthcheck::Check { command, options } = health else {
        return ImageHealthcheck { test: vec!["NONE".to_owned()], ..ImageHealthcheck::default() };
    };
    let test = match command {
        CommandLine::Exec(words) => std::iter::once("CMD".to_owned()).chain(words.iter().cloned()).collect(),
        CommandLine::Shell(text) => vec!["CMD-SHELL".to_owned(), text.clone()],
    };
    // Read from a 63-bit number of nanoseconds.
    let nanos = |duration: Option<Duration>| {
        duration.map_or(0, |duration| i64::try_from(duration.as_nanos()).unwrap_or(i64::MAX))
    };
    ImageHealthcheck {
        test,
        interval: nanos(options.interval),
        timeout: nanos(options.timeout),
        start_period: nanos(options.start_period),
        start_interval: nanos(options.start_interval),
        retries: options.retries.map_or(0, i64::from),
        ..ImageHealthcheck::default()
    }
}

/// Go's `%+v` of the healthcheck.
fn healthcheck_text(check: &ImageHealthcheck) -> String {
    format!(
        "{{Test:[{}] Interval:{} Timeout:{} StartPeriod:{} StartInterval:{} Retries:{}}}",
        check.test.join(" "),
        go_duration(check.interval),
        go_duration(check.timeout),
        go_duration(check.start_period),
        go_duration(check.start_interval),
        check.retries,
    )
}

/// Go's `%q` of a pointer to the healthcheck of Moby 20.10, a number of retries being a character to it.
fn classic_healthcheck_text(check: &ImageHealthcheck) -> String {
    let retries = match u32::try_from(check.retries)
        .ok()
        .and_then(char::from_u32)
        .unwrap_or(char::REPLACEMENT_CHARACTER)
    {
        '\'' => "\\'".to_owned(),
        '"' => "\"".to_owned(),
        // Quoted as in a text.
        other => go_quote(&other.to_string()).trim_matches('"').to_owned(),
    };
    let times = [check.interval, check.timeout, check.start_period];
    let times: Vec<String> = times.iter().map(|nanos| go_quote(&go_duration(*nanos))).collect();
    format!("&{{{} {} '{retries}'}}", quoted_list(&check.test), times.join(" "))
}

/// Go's `Duration.String`, for what is not negative.
fn go_duration(nanos: i64) -> String {
    let fraction = |value: i64, unit: i64, suffix: &str| {
        let digits = unit.to_string().len() - 1;
        let mut text = (value / unit).to_string();
        if value % unit != 0 {
            let part = format!("{:0digits$}", value % unit);
            text.push('.');
            text.push_str(part.trim_end_matches('0'));
        }
        text + suffix
    };
    match nanos {
        0 => "0s".to_owned(),
        n if n < 1_000 => format!("{n}ns"),
        n if n < 1_000_000 => fraction(n, 1_000, "µs"),
        n if n < 1_000_000_000 => fraction(n, 1_000_000, "ms"),
        n => {
            let minutes = n / 60_000_000_000;
            let seconds = fraction(n % 60_000_000_000, 1_000_000_000, "s");
            match (minutes / 60, minutes % 60) {
                (0, 0) => seconds,
                (0, minutes) => format!("{minutes}m{seconds}"),
                (hours, minutes) => format!("{hours}h{minutes}m{seconds}"),
            }
        }
    }
}

/// A signal's name, with or without `SIG` and in any case, or its number.
fn is_signal(text: &str) -> bool {
    const NAMES: &[&str] = &[
        "ABRT", "ALRM", "BUS", "CHLD", "CLD", "CONT", "FPE", "HUP", "ILL", "INT", "IO", "IOT", "KILL",
        "PIPE", "POLL", "PROF", "PWR", "QUIT", "SEGV", "STKFLT", "STOP", "SYS", "TERM", "TRAP", "TSTP",
        "TTIN", "TTOU", "URG", "USR1", "USR2", "VTALRM", "WINCH", "XCPU", "XFSZ", "RTMIN", "RTMAX",
    ];
    if let Ok(number) = text.parse::<i64>() {
        return number != 0;
    }
    let name = text.to_uppercase();
    let name = name.strip_prefix("SIG").unwrap_or(&name);
    let offset = |prefix: &str, most: u8| {
        let digits = name.strip_prefix(prefix)?;
        let number = digits.parse::<u8>().ok()?;
        Some(!digits.starts_with(['0', '+']) && number <= most)
    };
    NAMES.contains(&name) || offset("RTMIN+", 15) == Some(true) || offset("RTMAX-", 14) == Some(true)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_read_as_go_writes_them() {
        for (nanos, text) in [
            (0, "0s"),
            (7, "7ns"),
            (1_500, "1.5µs"),
            (2_000_000, "2ms"),
            (1_500_000_000, "1.5s"),
            (30_000_000_000, "30s"),
            (90_000_000_000, "1m30s"),
            (3_600_000_000_000, "1h0m0s"),
            (3_661_000_000_001, "1h1m1.000000001s"),
        ] {
            assert_eq!(go_duration(nanos), text);
        }
    }

    #[test]
    fn signals_are_names_or_numbers() {
        for good in ["9", "SIGTERM", "term", "sigRtmin+15", "RTMAX-1", "64"] {
            assert!(is_signal(good), "{good}");
        }
        for bad in ["0", "", "SIG", "SIGFOO", "RTMIN+16", "RTMAX-0", "RTMIN+", "9x"] {
            assert!(!is_signal(bad), "{bad}");
        }
    }
}
