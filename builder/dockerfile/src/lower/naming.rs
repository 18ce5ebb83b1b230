//! What vertices are called: `[stage 2/3] RUN …`.

use lapstrake_builder_llb::EnvList;
use lapstrake_layerstore_oci::Platform;

use super::Lowering;
use crate::shell::{Lexer, Variables};

impl Lowering<'_> {
    /// The next name of a stage's steps. `env` tells what is being cross-compiled for.
    pub(super) fn step_name(
        &mut self,
        stage: usize,
        text: &str,
        platform: Option<&Platform>,
        env: Option<&EnvList>,
    ) -> String {
        let show_platform = self.options.is_multi_platform();
        let stage = &mut self.stages[stage];
        if stage.step_total == 0 {
            return text.to_owned();
        }
        let mut name = "[".to_owned();
        if let Some(platform) = platform.filter(|_| show_platform) {
            name.push_str(&platform.to_full_string());
            name.push_str(&cross_suffix(platform, env));
            name.push(' ');
        }
        if !stage.display_name.is_empty() {
            name.push_str(&stage.display_name);
            name.push(' ');
        }
        stage.step_index += 1;
        let width = stage.step_total.to_string().len();
        name.push_str(&format!("{:>width$}/{}] ", stage.step_index, stage.step_total));
        if stage.in_trigger {
            name.push_str("ONBUILD ");
        }
        name.push_str(text);
        name
    }
}

/// `->arm64`, where the environment names another target than the stage's platform.
fn cross_suffix(base: &Platform, env: Option<&EnvList>) -> String {
    let Some(mut target) = env.and_then(target_in_env) else { return String::new() };
    if target.os.is_empty() {
        target.os = base.os.clone();
    }
    if target.architecture.is_empty() {
        target.architecture = base.architecture.clone();
    }
    let target = target.normalized();
    if target.os != base.os {
        return format!("->{}", target.to_full_string());
    }
    if target.architecture == base.architecture {
        return String::new();
    }
    match target.variant.as_str() {
        "" => format!("->{}", target.architecture),
        variant => format!("->{}/{variant}", target.architecture),
    }
}

fn target_in_env(env: &EnvList) -> Option<Platform> {
    let mut found = None;
    for (key, value) in env.iter() {
        match key {
            "TARGETPLATFORM" => {
                if let Ok(platform) = Platform::parse(value) {
                    return Some(platform);
                }
            }
            "TARGETOS" => found.get_or_insert_with(Platform::default).os = value.to_owned(),
            "TARGETARCH" => found.get_or_insert_with(Platform::default).architecture = value.to_owned(),
            "TARGETVARIANT" => found.get_or_insert_with(Platform::default).variant = value.to_owned(),
            _ => {}
        }
    }
    found
}

/// An instruction's text with its variables expanded (if they can be) and its keyword in upper case.
pub(super) fn expanded(text: &str, lexer: &Lexer, variables: &(impl Variables + ?Sized)) -> String {
    let text = lexer.expand(text, variables).map_or_else(|_| text.to_owned(), |expansion| expansion.value);
    match text.split_once(' ') {
        Some((keyword, rest)) => format!("{} {rest}", keyword.to_uppercase()),
        None => text.to_uppercase(),
    }
}
