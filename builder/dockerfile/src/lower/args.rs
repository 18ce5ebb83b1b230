//! Global `ARG`s, the predefined ones, and `SOURCE_DATE_EPOCH`.

use lapstrake_builder_llb::{EnvList, ProxyEnv};

use super::{LowerError, Lowered, Lowering};
use crate::facts::Need;
use crate::location::LineRange;
use crate::options::ContextSource;
use crate::shell::WordError;

const EPOCH: &str = "SOURCE_DATE_EPOCH";

impl Lowering<'_> {
    /// Sets `global_args`: platforms first, then the Dockerfile's own with the client's values.
    pub(super) fn define_global_args(&mut self) -> Lowered<()> {
        let predefined = self.predefined_args();
        self.check_default_bases(&predefined);
        let mut args = predefined;
        for meta in &self.dockerfile.meta_args {
            for declaration in &meta.arg.declarations {
                let given = self.build_args.get(&declaration.key).cloned();
                let value = match (given, &declaration.value) {
                    (Some(given), _) => Some(given),
                    (None, Some(default)) => Some(self.expand_global(default, &args, meta.source.lines)?),
                    (None, None) => None,
                };
                if let Some(value) = &value {
                    args.set(&declaration.key, value);
                }
                self.declared_args.insert(declaration.key.clone());
            }
            self.global_arg_step(meta);
        }
        self.global_args = args;
        Ok(())
    }

    fn expand_global(&self, word: &str, args: &EnvList, lines: LineRange) -> Lowered<String> {
        let expansion = self.lexer.expand(word, args);
        Ok(expansion.map_err(|e: WordError| LowerError::Word(e).at(lines))?.value)
    }

    fn predefined_args(&self) -> EnvList {
        let (build, target) = (&self.options.build_platform, &self.target_platform);
        let stage = self.options.target.as_deref().filter(|name| !name.is_empty());
        let last = self.dockerfile.stages.last().and_then(|stage| stage.name.as_deref());
        let mut args = EnvList::default();
        for (key, value) in [
            ("BUILDPLATFORM", build.to_string().as_str()),
            ("BUILDOS", &build.os),
            ("BUILDOSVERSION", &build.os_version),
            ("BUILDARCH", &build.architecture),
            ("BUILDVARIANT", &build.variant),
            ("TARGETPLATFORM", &target.to_full_string()),
            ("TARGETOS", &target.os),
            ("TARGETOSVERSION", &target.os_version),
            ("TARGETARCH", &target.architecture),
            ("TARGETVARIANT", &target.variant),
            ("TARGETSTAGE", stage.or(last).unwrap_or("default")),
        ] {
            args.set(key, self.build_args.get(key).map_or(value, String::as_str));
        }
        args
    }

    /// The arguments as they would be if the client gave none; `None` if they cannot be expanded.
    pub(super) fn default_args(&self, predefined: &EnvList) -> Option<EnvList> {
        let mut args = predefined.clone();
        let declarations = self.dockerfile.meta_args.iter().flat_map(|meta| &meta.arg.declarations);
        for declaration in declarations {
            if let Some(default) = &declaration.value {
                let value = self.lexer.expand(default, &args).ok()?.value;
                args.set(&declaration.key, &value);
            }
        }
        Some(args)
    }

    /// Finds out `SOURCE_DATE_EPOCH`; false if something is needed for that.
    pub(super) fn resolve_epoch(&mut self) -> Lowered<bool> {
        let global = self.global_args.get(EPOCH).filter(|value| !value.is_empty());
        let Some(value) = self.build_args.get(EPOCH).map(String::as_str).or(global) else { return Ok(true) };
        let value = value.to_owned();
        self.epoch = match value.as_str() {
            "" => None,
            "context" => match (&self.options.context, self.facts.context_epoch) {
                (ContextSource::Local(_) | ContextSource::Input { .. }, _) => None,
                (_, Some(epoch)) => epoch,
                (_, None) => {
                    self.needs.push(Need::ContextEpoch);
                    return Ok(false);
                }
            },
            _ => Some(self.parse_epoch(&value)?),
        };
        // From here on the argument is the number, however it was given.
        let text = self.epoch.map(|epoch| epoch.to_string());
        if self.build_args.contains_key(EPOCH) {
            match &text {
                Some(text) => self.build_args.insert(EPOCH.to_owned(), text.clone()),
                None => self.build_args.remove(EPOCH),
            };
        }
        if self.global_args.get(EPOCH).is_some() {
            match &text {
                Some(text) => self.global_args.set(EPOCH, text),
                None => self.global_args.remove(EPOCH),
            }
        }
        Ok(true)
    }

    fn parse_epoch(&self, value: &str) -> Lowered<i64> {
        if let Ok(epoch) = value.parse() {
            // A time that no image config can hold.
            return match time::OffsetDateTime::from_unix_timestamp(epoch) {
                Ok(_) => Ok(epoch),
                Err(_) => Err(LowerError::Epoch(value.to_owned()).nowhere()),
            };
        }
        let names_stage =
            self.dockerfile.stages.iter().any(|stage| {
                stage.name.as_ref().is_some_and(|name| name.to_lowercase() == value.to_lowercase())
            });
        if names_stage || self.options.named_contexts.contains_key(value) {
            let what = format!("SOURCE_DATE_EPOCH={value}: a stage's or a named context's time");
            return Err(LowerError::Unsupported(what).nowhere());
        }
        Err(LowerError::Epoch(value.to_owned()).nowhere())
    }

    /// Proxy settings among the build arguments: `RUN` gets them without their being part of its cache key.
    pub(super) fn proxy_env(&self) -> Option<ProxyEnv> {
        let mut proxy = None;
        for (key, value) in &self.build_args {
            let key = key.to_lowercase();
            if !matches!(key.as_str(), "http_proxy" | "https_proxy" | "ftp_proxy" | "no_proxy" | "all_proxy")
            {
                continue;
            }
            let proxy = proxy.get_or_insert_with(ProxyEnv::default);
            let slot = match key.as_str() {
                "http_proxy" => &mut proxy.http,
                "https_proxy" => &mut proxy.https,
                "ftp_proxy" => &mut proxy.ftp,
                "no_proxy" => &mut proxy.no,
                _ => &mut proxy.all,
            };
            *slot = value.clone();
        }
        proxy
    }
}
