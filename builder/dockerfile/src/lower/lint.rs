//! Doubts that only planning can have.

use std::collections::BTreeSet;
use std::sync::LazyLock;

use lapstrake_builder_llb::{EnvList, clean_path};
use lapstrake_layerstore_oci::{Platform, Reference};
use regex::Regex;

use super::dispatch::{At, is_scan_arg};
use super::{LowerError, Lowered, Lowering};
use crate::instructions::Stage;
use crate::lint::Rule;
use crate::location::LineRange;
use crate::shell::Expansion;
use crate::text::{go_quote, suggestion};

/// Words that make a variable's name sound secret, and words that make it harmless again.
static SECRET: LazyLock<Regex> = LazyLock::new(|| {
    let words = "apikey|auth|credential|credentials|key|password|pword|passwd|secret|token";
    Regex::new(&format!("(?i)(?:_|^)(?:{words})(?:_|$)")).expect("it compiles")
});
static HARMLESS: LazyLock<Regex> =
    LazyLock::new(|| Regex::new("(?i)(?:_|^)(?:public|file|version)(?:_|$)").expect("it compiles"));

impl Lowering<'_> {
    pub(super) fn warn(&mut self, at: &At, rule: Rule, message: String) {
        self.reporter.report(&at.lint, rule, at.lines, message);
    }

    /// Warnings fail the build, if it is to be so; what is at fault is where the first of them is.
    pub(super) fn fail_for_warnings(&self) -> Lowered<()> {
        let warnings = &self.reporter.warnings;
        let Some(first) = warnings.iter().min_by_key(|warning| warning.lines) else { return Ok(()) };
        if !self.reporter.config.fail {
            return Ok(());
        }
        let rules: BTreeSet<&str> = warnings.iter().map(|warning| warning.rule.name()).collect();
        let rules: Vec<&str> = rules.into_iter().collect();
        Err(LowerError::Lint(rules.join(", ")).at(first.lines))
    }

    fn warn_stage(&mut self, stage: &Stage, rule: Rule, message: String) {
        let config = self.reporter.config.with_comments(&stage.source.comments);
        self.reporter.report(&config, rule, stage.source.lines, message);
    }

    /// Base names must make sense without the client's arguments, too.
    pub(super) fn check_default_bases(&mut self, predefined: &EnvList) {
        let Some(args) = self.default_args(predefined) else { return };
        let dockerfile = self.dockerfile;
        for stage in &dockerfile.stages {
            let Ok(name) = self.lexer.expand(&stage.base, &args) else { return };
            if Reference::parse(&name.value).is_err() {
                let message = format!(
                    "Default value for ARG {} results in empty or invalid base image name",
                    stage.base
                );
                let config = self.reporter.config.clone();
                self.reporter.report(&config, Rule::InvalidDefaultArgInFrom, stage.source.lines, message);
            }
        }
    }

    pub(super) fn check_from_args(&mut self, missing: &BTreeSet<String>, stage: &Stage) {
        if missing.is_empty() {
            return;
        }
        let known: BTreeSet<&str> = self
            .declared_args
            .iter()
            .map(String::as_str)
            .chain(self.global_args.iter().map(|(k, _)| k))
            .collect();
        let unknown: Vec<(String, Option<String>)> = missing
            .iter()
            .filter(|arg| !known.contains(arg.as_str()))
            .map(|arg| (arg.clone(), suggestion(arg, &known.iter().copied().collect::<Vec<_>>())))
            .collect();
        for (arg, suggestion) in unknown {
            let mut message = format!("FROM argument '{arg}' is not declared");
            if let Some(word) = suggestion {
                message.push_str(&format!(" (did you mean {word}?)"));
            }
            self.warn_stage(stage, Rule::UndefinedArgInFrom, message);
        }
    }

    pub(super) fn check_from_platform(&mut self, platform: &Expansion, stage: &Stage) {
        let written = stage.platform.as_deref().unwrap_or_default();
        if platform.used.len() == 1 && platform.missing.is_empty() && platform.used.contains("TARGETPLATFORM")
        {
            if self.global_args.get("TARGETPLATFORM") == Some(&platform.value) {
                let message = format!(
                    "Setting platform to predefined {written} in FROM is redundant as this is the default behavior"
                );
                self.warn_stage(stage, Rule::RedundantTargetPlatform, message);
            }
            return;
        }
        if !platform.used.is_empty() || !platform.missing.is_empty() {
            return;
        }
        let Ok(constant) = Platform::parse(&platform.value) else { return };
        let name = stage.name.as_deref().unwrap_or_default();
        if name.contains(&constant.os) || name.contains(&constant.architecture) {
            return;
        }
        let message =
            format!("FROM --platform flag should not use constant value {}", go_quote(&platform.value));
        self.warn_stage(stage, Rule::FromPlatformFlagConstDisallowed, message);
    }

    pub(super) fn check_base_platform(&mut self, name: &str, wanted: &Platform, is: &Platform, stage: usize) {
        if wanted.os == is.os && wanted.architecture == is.architecture {
            return;
        }
        let text = |p: &Platform| go_quote(&p.normalized().to_full_string());
        let message = format!(
            "Base image {name} was pulled with platform {}, expected {} for current build",
            text(is),
            text(wanted)
        );
        let (config, lines) = (self.reporter.config.clone(), self.stages[stage].lines);
        self.reporter.report(&config, Rule::InvalidBaseImagePlatform, lines, message);
    }

    /// Variables that an instruction uses and nobody set.
    pub(super) fn check_undefined(&mut self, at: &At, mut missing: BTreeSet<String>, env: &EnvList) {
        if missing.is_empty() {
            return;
        }
        missing.retain(|name| !is_scan_arg(name));
        let args = &self.stages[at.stage].args;
        missing.retain(|name| !args.iter().any(|(key, _)| key == name));
        for name in missing {
            let known: Vec<&str> = env.iter().map(|(key, _)| key).collect();
            // To look for the nearest of many names takes time, and a Dockerfile has room for many.
            self.spent += 64 * known.len();
            let mut message = format!("Usage of undefined variable '${name}'");
            if let Some(word) = suggestion(&name, &known) {
                message.push_str(&format!(" (did you mean ${word}?)"));
            }
            self.warn(at, Rule::UndefinedVar, message);
        }
    }

    pub(super) fn check_secret_name(&mut self, at: &At, instruction: &str, name: &str) {
        if SECRET.is_match(name) && !HARMLESS.is_match(name) {
            let name = go_quote(name);
            let message =
                format!("Do not use ARG or ENV instructions for sensitive data ({instruction} {name})");
            self.warn(at, Rule::SecretsUsedInArgOrEnv, message);
        }
    }

    /// Only the last `CMD`, `ENTRYPOINT` or `HEALTHCHECK` counts: the warning points at the one that does not.
    pub(super) fn check_used_once(&mut self, at: &At, keyword: &str, before: Option<LineRange>) {
        if let Some(lines) = before {
            let message = format!(
                "Multiple {keyword} instructions should not be used in the same stage because only the last one will be used"
            );
            self.reporter.report(&at.lint, Rule::MultipleInstructionsDisallowed, lines, message);
        }
    }

    /// A source that the ignore file keeps out of the context. With exceptions in the file that is hard to tell, and not tried.
    pub(super) fn check_ignored(&mut self, at: &At, source: &str, verb: &str) {
        let Some(matcher) = self.ignore.as_ref().filter(|matcher| !matcher.has_exceptions()) else { return };
        let source = clean_path(source);
        if source == "." || source == "/" {
            let everything = |pattern: String| matches!(pattern.as_str(), "*" | "**" | "**/*");
            if !matcher.patterns().any(everything) {
                return;
            }
        }
        if matcher.matches(&source) {
            let file = go_quote(&source);
            let message = format!("Attempting to {verb} file {file} that is excluded by .dockerignore");
            self.warn(at, Rule::CopyIgnoredFile, message);
        }
    }
}
