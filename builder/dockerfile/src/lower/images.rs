//! What stages start from.

use std::sync::Arc;

use lapstrake_builder_llb::{ImageSource, OpOptions, State};
use lapstrake_layerstore_oci::{Digest, ImageConfig, ImageId, Platform, Reference};

use super::path::WINDOWS;
use super::stages::SCRATCH;
use super::{LowerError, Lowered, Lowering};
use crate::facts::{ImageFact, ImageOrigin, ImageQuery, Need};
use crate::location::LineRange;
use crate::text::suggestion;

/// Images that are suggested in the place of one that is not there; BuildKit's.
const COMMON_IMAGES: &[&str] = &["alpine", "busybox", "centos", "debian", "golang", "ubuntu", "fedora"];
/// Docker's default search path for programs.
pub(super) const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

impl Lowering<'_> {
    /// Makes a stage's `state` and `image` those of what it starts from, if that is no other stage. Stages that nobody needs are only
    /// looked at for malformed names. What is not known yet is added to `needs`.
    pub(super) fn resolve_base(&mut self, index: usize, reachable: bool) -> Lowered<()> {
        let stage = &self.stages[index];
        if stage.base.is_some() || stage.dispatched || stage.resolved {
            return Ok(());
        }
        let lines = stage.lines;
        let unregistered = stage.number.is_none();
        if stage.missing.is_some() {
            self.start_from_missing(index, unregistered);
            return Ok(());
        }
        if stage.base_name == SCRATCH && stage.named_context.is_none() {
            let platform = self.target_platform.clone();
            let classic = self.is_classic();
            let stage = &mut self.stages[index];
            stage.resolved = reachable;
            stage.state = State::scratch();
            stage.image = empty_image(&platform);
            if classic {
                stage.image.config.working_dir.clear();
            }
            stage.platform = Some(platform);
            stage.dispatched = unregistered;
            return Ok(());
        }
        let name = stage.base_name.clone();
        let reference = match Reference::parse(&name) {
            Ok(reference) => reference.with_default_tag(),
            Err(problem) if self.is_classic() => {
                let problem = problem.to_string();
                self.stages[index].missing = Some(match unregistered {
                    true => format!("invalid from flag value {name}: {problem}"),
                    false => problem,
                });
                self.start_from_missing(index, unregistered);
                return Ok(());
            }
            Err(e) => return Err(LowerError::StageName { name, problem: e.to_string() }.at(lines)),
        };
        if !reachable {
            return Ok(());
        }
        let known = match self.stages[index].named_context.clone() {
            Some(named) => self.start_from_stage_context(index, &named)?,
            None => self.start_from_image(index, &name, reference, lines)?,
        };
        if known {
            self.stages[index].resolved = true;
            self.stages[index].dispatched |= unregistered;
        }
        Ok(())
    }

    /// A stage whose base cannot be had fails when its turn comes.
    fn start_from_missing(&mut self, index: usize, unregistered: bool) {
        let platform = self.stages[index].platform.clone().unwrap_or_else(|| self.target_platform.clone());
        let stage = &mut self.stages[index];
        stage.image = empty_image(&platform);
        stage.platform = Some(platform);
        stage.resolved = true;
        stage.dispatched |= unregistered;
    }

    /// A stage that the client replaced by a context of the same name is done with.
    fn start_from_stage_context(
        &mut self,
        index: usize,
        named: &super::named::NamedContext,
    ) -> Lowered<bool> {
        let paths = self.stages[index].paths;
        let Some((state, image)) = self.load_named_context(named, paths, self.stages[index].lines)? else {
            return Ok(false);
        };
        let default = self.stages[index].platform.clone().unwrap_or_else(|| self.target_platform.clone());
        let stage = &mut self.stages[index];
        stage.dispatched = true;
        stage.state = state;
        // BuildKit leaves the config of a context that is no image without even a platform.
        let mut image = image.unwrap_or_else(|| ImageConfig::for_platform(&default));
        image.created = None;
        if !image.architecture.is_empty() && !image.os.is_empty() {
            stage.platform = Some(image.platform());
        }
        self.start_from(index, image);
        Ok(true)
    }

    fn start_from_image(
        &mut self,
        index: usize,
        original: &str,
        reference: Reference,
        lines: LineRange,
    ) -> Lowered<bool> {
        let stage = &self.stages[index];
        let explicit = stage.platform.clone();
        let platform = explicit.clone().unwrap_or_else(|| self.target_platform.clone());
        if let Some(named) = self.named_context(&reference.to_string(), Some(&platform), lines)? {
            let paths = self.stages[index].paths;
            let Some((state, image)) = self.load_named_context(&named, paths, lines)? else {
                return Ok(false);
            };
            let mut image = image.unwrap_or_else(|| empty_image(&platform));
            let stage = &mut self.stages[index];
            stage.base_image = Some(Arc::new(image.clone()));
            image.created = None;
            stage.state = state.with_platform(&platform);
            stage.platform = Some(platform);
            self.start_from(index, image);
            return Ok(true);
        }
        let query = ImageQuery {
            origin: ImageOrigin::registry(self.options.resolve_mode),
            reference: reference.clone(),
            platform: platform.clone(),
        };
        let mut prefix = "[".to_owned();
        if self.options.is_multi_platform() {
            prefix.push_str(&platform.to_full_string());
            prefix.push(' ');
        }
        let progress_name = format!("{prefix}internal] load metadata for {reference}");
        if let Some(why) = self.facts.missing.get(&query) {
            if !self.is_classic() {
                return Err(self.no_base(original, why).at(lines));
            }
            let unregistered = self.stages[index].number.is_none();
            let stage = &mut self.stages[index];
            stage.image = empty_image(&platform);
            stage.platform = Some(platform);
            stage.missing = Some(match unregistered {
                true => format!("invalid from flag value {original}: {why}"),
                false => why.clone(),
            });
            return Ok(true);
        }
        let Some(fact) = self.image(query, progress_name, original, lines)? else { return Ok(false) };
        let mut image = parse_config(&fact, original, lines)?;
        self.stages[index].base_image = Some(Arc::new(image.clone()));
        // An image's id is its config's digest, wherever it is.
        self.stages[index].base_id = match self.is_classic() {
            true => Some(ImageId(Digest::sha256_of(&fact.config))),
            false => fact.image_id.clone(),
        };
        image.created = None;
        let platform = match explicit {
            None if self.implicit_target => self.detect_platform(&image, platform),
            _ => platform,
        };
        let reference = match &fact.digest {
            Some(digest) => fact.reference.clone().with_digest(digest.clone()),
            None => fact.reference.clone(),
        };
        self.stages[index].base_name = reference.to_string();
        // No layers: either nothing, or (schema 1) layers that the config does not list.
        let empty = image.rootfs.diff_ids.is_empty() && image.history.iter().all(|h| h.empty_layer);
        let state = if empty {
            State::scratch()
        } else {
            self.check_base_platform(original, &platform, &image.platform(), index);
            self.image_state(index, reference, &platform)
        };
        let stage = &mut self.stages[index];
        stage.state = state;
        stage.platform = Some(platform);
        self.start_from(index, image);
        Ok(true)
    }

    /// The tree of an image's lowest layers.
    pub(super) fn layers_of(&mut self, reference: Reference, layers: u32, platform: &Platform) -> State {
        let mut options = OpOptions::internal(&format!("layers of {reference}"));
        options.platform = Some(platform.clone());
        let source = ImageSource {
            reference,
            resolve_mode: self.options.resolve_mode,
            layer_limit: Some(layers),
            checksum: None,
        };
        self.graph.image(source, options)
    }

    fn image_state(&mut self, index: usize, reference: Reference, platform: &Platform) -> State {
        let command = format!("FROM {reference}");
        let name = self.step_name(index, &command, Some(platform), None);
        let mut options = OpOptions::named(name);
        options
            .metadata
            .description
            .insert("com.docker.dockerfile.v1.command".to_owned(), self.stages[index].code.clone());
        options.platform = Some(platform.clone());
        if self.stages[index].located {
            options.locations.push(self.location(self.stages[index].lines));
        }
        let source = ImageSource {
            reference,
            resolve_mode: self.options.resolve_mode,
            layer_limit: None,
            checksum: None,
        };
        self.graph.image(source, options)
    }

    /// What is known of an image; if nothing is, it is asked for.
    pub(super) fn image(
        &mut self,
        query: ImageQuery,
        progress_name: String,
        named: &str,
        lines: LineRange,
    ) -> Lowered<Option<ImageFact>> {
        if let Some(fact) = self.facts.images.get(&query) {
            return Ok(Some(fact.clone()));
        }
        if let Some(why) = self.facts.missing.get(&query) {
            return Err(LowerError::NoImage { why: why.clone() }.at(lines));
        }
        let need = Need::ImageConfig { query, progress_name, named: named.to_owned() };
        if !self.needs.contains(&need) {
            self.needs.push(need);
        }
        Ok(None)
    }

    /// What a stage starts from, or copies of, cannot be had; perhaps a stage was meant.
    fn no_base(&self, name: &str, why: &str) -> LowerError {
        let stages = self.stages.iter().map(|stage| stage.display_name.as_str());
        let mut known: Vec<String> = stages.filter(|name| !name.is_empty()).map(str::to_owned).collect();
        for image in COMMON_IMAGES {
            known.extend([(*image).to_owned(), format!("{image}:latest")]);
        }
        let known: Vec<&str> = known.iter().map(String::as_str).collect();
        let (name, why) = (name.to_owned(), why.to_owned());
        LowerError::NoBase { suggestion: suggestion(&name, &known), name, why }
    }

    /// Nobody asked for a platform: an image that exists only for another one that we can run is taken as it is.
    fn detect_platform(&self, image: &ImageConfig, target: Platform) -> Platform {
        let fits = |p: &&Platform| p.os == image.os && p.architecture == image.architecture;
        if fits(&&target) {
            return target;
        }
        let mut others = std::iter::once(&self.options.build_platform).chain(&self.facts.platforms);
        others.find(fits).cloned().unwrap_or(target)
    }
}

/// An image of nothing.
pub(super) fn empty_image(platform: &Platform) -> ImageConfig {
    let mut image = ImageConfig::for_platform(platform);
    image.config.working_dir = "/".to_owned();
    if platform.os != WINDOWS {
        image.config.env = vec![format!("PATH={DEFAULT_PATH}")];
    }
    image
}

pub(super) fn parse_config(fact: &ImageFact, name: &str, lines: LineRange) -> Lowered<ImageConfig> {
    let mut config = ImageConfig::from_json(&fact.config)
        .map_err(|e| LowerError::ImageConfig { name: name.to_owned(), problem: e.to_string() }.at(lines))?;
    // BuildKit's frontend knows fewer fields; the same Dockerfile must give the same config.
    config.retain_buildkit_fields();
    Ok(config)
}
