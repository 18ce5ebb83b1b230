//! Named contexts: what the client puts in place of images and stages (`--build-context`).

use std::collections::BTreeMap;

use base64::Engine as _;
use lapstrake_builder_llb::{
    HttpSource, ImageSource, LocalSource, OciLayoutSource, OpOptions, ResolveMode, State,
};
use lapstrake_layerstore_oci::{ImageConfig, Platform, Reference};

use super::context::{follow_paths, git_context, input, local_source, marshal, read_patterns};
use super::{LowerError, Lowered, Lowering, git, images};
use crate::facts::{ImageOrigin, ImageQuery, Need, NeedDefinition};
use crate::location::LineRange;
use crate::options::{LocalContext, NamedContextSource};

const DOCKERIGNORE: &str = ".dockerignore";

/// A named context that takes the place of something.
#[derive(Debug, Clone)]
pub(super) struct NamedContext {
    /// The name alone.
    name: String,
    /// The client's name for it, perhaps with a platform.
    key: String,
    source: NamedContextSource,
    /// `None` for whatever platform the build is for.
    platform: Option<Platform>,
}

/// A local named context whose paths are still being found.
pub(super) struct LocalNamedContext {
    state: State,
    key: String,
    shared_key: String,
    local: LocalContext,
    excludes: Vec<String>,
    /// In [`Lowering::used_paths`].
    paths: usize,
}

impl Lowering<'_> {
    /// The named context that takes the place of an image or a stage, if there is one.
    pub(super) fn named_context(
        &self,
        name: &str,
        platform: Option<&Platform>,
        lines: LineRange,
    ) -> Lowered<Option<NamedContext>> {
        if matches!(name.to_lowercase().as_str(), "scratch" | "context") {
            return Ok(None);
        }
        let reference = Reference::parse(name).map_err(|e| {
            LowerError::ContextName { name: name.to_owned(), problem: e.to_string() }.at(lines)
        })?;
        if self.options.named_contexts.is_empty() {
            return Ok(None);
        }
        let asked = (!self.implicit_target).then_some(&self.target_platform);
        let platform = platform.or(asked);
        let for_key = platform.unwrap_or(&self.options.build_platform);
        Ok(self.find_named(&reference, for_key).map(|(name, key)| {
            let source = self.options.named_contexts[&key].clone();
            NamedContext { name, key, source, platform: platform.cloned() }
        }))
    }

    /// The specifier of the context of this name, for the platform we run on.
    pub(super) fn named_specifier(&self, name: &str) -> Option<&str> {
        let reference = Reference::parse(name).ok()?;
        let (_, key) = self.find_named(&reference, &self.options.build_platform)?;
        Some(&self.options.named_contexts[&key].specifier)
    }

    /// A name as clients write it, and the key that it has, perhaps for one platform.
    fn find_named(&self, reference: &Reference, platform: &Platform) -> Option<(String, String)> {
        let familiar = reference.familiar();
        let name = familiar.strip_suffix(":latest").unwrap_or(&familiar);
        let keys = [format!("{name}::{}", platform.normalized().to_full_string()), name.to_owned()];
        let key = keys.into_iter().find(|key| self.options.named_contexts.contains_key(key))?;
        Some((name.to_owned(), key))
    }

    /// What a named context is; `None` if something is to be found out first.
    pub(super) fn load_named_context(
        &mut self,
        named: &NamedContext,
        paths: usize,
        lines: LineRange,
    ) -> Lowered<Option<(State, Option<ImageConfig>)>> {
        let specifier = &named.source.specifier;
        let Some((kind, rest)) = specifier.split_once(':') else {
            let problem = format!("invalid context specifier {specifier} for {}", named.key);
            return Err(LowerError::ContextSpecifier(problem).at(lines));
        };
        let kind = if kind.starts_with("git@") { "git" } else { kind };
        match kind {
            "docker-image" => self.load_image(named, rest, lines),
            "oci-layout" => self.load_layout(named, rest, lines),
            "git" => Ok(Some((git_context(&mut self.graph, specifier, None, false)?, None))),
            "http" | "https" if git::is_git(specifier) => {
                Ok(Some((git_context(&mut self.graph, specifier, None, false)?, None)))
            }
            "http" | "https" => {
                let source = HttpSource {
                    url: specifier.clone(),
                    filename: Some("context".to_owned()),
                    ..HttpSource::default()
                };
                let options = OpOptions::named(format!("[context {}] {specifier}", named.key));
                Ok(Some((self.graph.http(source, options), None)))
            }
            "local" => self.load_local(named, rest, paths),
            "input" => self.load_input(named, rest, lines).map(Some),
            kind => {
                let problem = format!("unsupported context source {kind} for {}", named.key);
                Err(LowerError::ContextSpecifier(problem).at(lines))
            }
        }
    }

    fn load_image(
        &mut self,
        named: &NamedContext,
        rest: &str,
        lines: LineRange,
    ) -> Lowered<Option<(State, Option<ImageConfig>)>> {
        let text = rest.strip_prefix("//").unwrap_or(rest);
        if text == "scratch" {
            return Ok(Some((State::scratch(), None)));
        }
        let reference = parse_reference(text, lines)?.with_default_tag();
        let query = ImageQuery {
            origin: ImageOrigin::registry(self.options.resolve_mode),
            reference,
            platform: self.platform_of(named),
        };
        let progress_name = format!("[context {}] load metadata for {text}", named.key);
        let Some(fact) = self.image(query, progress_name, text, lines)? else { return Ok(None) };
        let mut image = images::parse_config(&fact, text, lines)?;
        image.created = None;
        let mut options = OpOptions::named(format!("[context {}] {text}", named.key));
        options.platform = named.platform.clone();
        let source = ImageSource {
            reference: fact.reference,
            // BuildKit asks for such an image by the default rule, whatever rule its config was found by.
            resolve_mode: ResolveMode::Default,
            layer_limit: None,
            checksum: None,
        };
        let state = self.graph.image(source, options);
        Ok(Some((with_config(state, &image), Some(image))))
    }

    fn load_layout(
        &mut self,
        named: &NamedContext,
        rest: &str,
        lines: LineRange,
    ) -> Lowered<Option<(State, Option<ImageConfig>)>> {
        let text = rest.strip_prefix("//").unwrap_or(rest);
        let problem = |what: &str| {
            LowerError::ContextSpecifier(format!("oci-layout reference {text:?} has no {what}")).at(lines)
        };
        // The store's name is the client's, not a repository: it is not completed to one on the Hub.
        let (store, digest) = text.split_once('@').ok_or_else(|| problem("digest"))?;
        let store = match store.rsplit_once(':') {
            Some((name, tag)) if !tag.contains('/') => name,
            _ => store,
        };
        if store.is_empty() {
            return Err(problem("name"));
        }
        let digest = digest.parse().map_err(|e| {
            LowerError::ContextSpecifier(format!("could not parse oci-layout reference {text:?}: {e}"))
                .at(lines)
        })?;
        let reference = parse_reference(&named.name, lines)?.with_digest(digest);
        let session_id = self.options.session_id.clone().unwrap_or_default();
        let query = ImageQuery {
            origin: ImageOrigin::OciLayout { store_id: store.to_owned(), session_id: session_id.clone() },
            reference: reference.clone(),
            platform: self.platform_of(named),
        };
        let progress_name = format!("[context {}] load metadata for {reference}", named.key);
        let Some(fact) = self.image(query, progress_name, text, lines)? else { return Ok(None) };
        let image = images::parse_config(&fact, text, lines)?;
        let mut options = OpOptions::named(format!("[context {}] OCI load from client", named.key));
        options.platform = named.platform.clone();
        let source = OciLayoutSource {
            reference: reference.to_string(),
            session_id,
            store_id: store.to_owned(),
            layer_limit: None,
        };
        let state = self.graph.oci_layout(source, options);
        Ok(Some((with_config(state, &image), Some(image))))
    }

    fn platform_of(&self, named: &NamedContext) -> Platform {
        named.platform.clone().unwrap_or_else(|| self.target_platform.clone())
    }

    fn load_local(
        &mut self,
        named: &NamedContext,
        rest: &str,
        paths: usize,
    ) -> Lowered<Option<(State, Option<ImageConfig>)>> {
        let local = LocalContext::named(rest);
        let Some(ignore) = self.facts.context_ignores.get(&named.key).cloned() else {
            let hint = format!("context:{}-{DOCKERIGNORE}", named.key);
            let source = LocalSource {
                follow_paths: vec![DOCKERIGNORE.to_owned()],
                differ: Some("none"),
                ..local_source(self.options, &local, hint)
            };
            let options = OpOptions::named(format!("[context {}] load {DOCKERIGNORE}", named.key));
            let mut graph = lapstrake_builder_llb::GraphBuilder::new();
            let state = graph.local(source, options);
            let definition = marshal(&graph, &state, self.options)?;
            let definition = Box::new(NeedDefinition::new(&definition));
            let need = Need::ContextIgnore { name: named.key.clone(), definition };
            if !self.needs.contains(&need) {
                self.needs.push(need);
            }
            return Ok(None);
        };
        let excludes = match ignore {
            Some(data) => read_patterns(&data, DOCKERIGNORE)?,
            None => Vec::new(),
        };
        let state = self.graph.deferred();
        self.local_contexts.push(LocalNamedContext {
            state: state.clone(),
            key: named.key.clone(),
            shared_key: named.source.shared_key.clone(),
            local,
            excludes,
            paths,
        });
        Ok(Some((state, None)))
    }

    /// All paths are known now.
    pub(super) fn resolve_local_contexts(&mut self) {
        for context in std::mem::take(&mut self.local_contexts) {
            let hint = format!("context:{}-{}", context.key, context.shared_key);
            let source = LocalSource {
                follow_paths: follow_paths(&self.used_paths[context.paths]),
                exclude_patterns: context.excludes,
                ..local_source(self.options, &context.local, hint)
            };
            let options = OpOptions::named(format!("[context {}] load from client", context.key));
            let state = self.graph.local(source, options);
            self.graph.resolve(&context.state, &state);
        }
    }

    fn load_input(
        &mut self,
        named: &NamedContext,
        name: &str,
        lines: LineRange,
    ) -> Lowered<(State, Option<ImageConfig>)> {
        if !self.facts.inputs.contains_key(name) {
            let problem = format!("invalid input {name} for {}", named.key);
            return Err(LowerError::ContextSpecifier(problem).at(lines));
        }
        let state = input(&mut self.graph, self.facts, name)?;
        let Some(metadata) = &named.source.input_metadata else { return Ok((state, None)) };
        let bad = |problem: String| {
            LowerError::ContextSpecifier(format!("failed to parse input metadata {metadata}: {problem}"))
                .at(lines)
        };
        // Go writes byte slices in base64.
        let fields: BTreeMap<String, String> =
            serde_json::from_str(metadata).map_err(|e| bad(e.to_string()))?;
        let Some(config) = fields.get("containerimage.config") else { return Ok((state, None)) };
        let config =
            base64::engine::general_purpose::STANDARD.decode(config).map_err(|e| bad(e.to_string()))?;
        let mut image = ImageConfig::from_json(&config).map_err(|e| bad(e.to_string()))?;
        image.retain_buildkit_fields();
        Ok((with_config(state, &image), Some(image)))
    }
}

fn parse_reference(text: &str, lines: LineRange) -> Lowered<Reference> {
    Reference::parse(text).map_err(|e| LowerError::ContextSpecifier(e.to_string()).at(lines))
}

/// A state that inherits what an image's config says.
fn with_config(mut state: State, image: &ImageConfig) -> State {
    for variable in &image.config.env {
        let (key, value) = variable.split_once('=').unwrap_or((variable, ""));
        if !key.is_empty() {
            state = state.with_env(key, value);
        }
    }
    state = state.with_dir(&image.config.working_dir);
    if !image.architecture.is_empty() && !image.os.is_empty() {
        state = state.with_platform(&image.platform());
    }
    state
}
