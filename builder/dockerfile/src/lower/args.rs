//! Global `ARG`s, and the predefined ones.

use std::collections::BTreeSet;

use lapstrake_builder_llb::{EnvList, ProxyEnv};

use super::{LowerError, Lowered, Lowering};
use crate::location::LineRange;
use crate::shell::{Expansion, WordError};

impl Lowering<'_> {
    /// Sets `global_args`: platforms first, then the Dockerfile's own with the client's values.
    pub(super) fn define_global_args(&mut self) -> Lowered<()> {
        let predefined = self.predefined_args();
        self.check_default_bases(&predefined);
        let mut args = predefined;
        for meta in &self.dockerfile.meta_args {
            for declaration in &meta.arg.declarations {
                let given = self.build_args.get(&declaration.key).cloned();
                let lines = meta.source.lines;
                let mut used = BTreeSet::new();
                let value = match (given, &declaration.value) {
                    (Some(given), _) => Some(given),
                    (None, Some(default)) => {
                        let expansion = self.expand_global(default, &args, lines)?;
                        used = expansion.used;
                        Some(expansion.value)
                    }
                    (None, None) => None,
                };
                self.capture_global(declaration, value.as_deref(), used, lines);
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

    fn expand_global(&self, word: &str, args: &EnvList, lines: LineRange) -> Lowered<Expansion> {
        let expansion = self.lexer.expand(word, args);
        expansion.map_err(|e: WordError| LowerError::Word(e).at(lines))
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
