//! Failed steps that are kept: what a `RUN` wrote until it failed, as an image to look into.
//!
//! ```text
//!   exec op fails ─► its root's draft, committed ─► FailedSteps of every build that asked ─► (the build fails because of it)
//!                                                                     image in the store, named ◄──┘ newest KEPT stay
//! ```
//!
//! Until the image is stored, a lease alone holds the tree: `kill -9` before that leaves a snapshot that nobody names, which the next start
//! removes, and after that an image like any other, stored by one transaction with its name once its files are durable. Old images go
//! afterwards; where a crash prevents that, the next one that is kept does it.

use std::sync::Arc;

use lapstrake_builder_exporter::{Exporter, PlatformResult};
use lapstrake_builder_llb::pb;
use lapstrake_builder_progress::Progress;
use lapstrake_layerstore_oci::{Digest, ImageConfig, ImageId, Platform, Reference};
use lapstrake_layerstore_store::{ImageRecord, StoreError, Stores, Tree};
use parking_lot::Mutex;

use crate::{BuildId, EngineError, StepError, engine::internal_vertex};

/// The repository of images of failed steps that were given no name.
pub const FAILED_REPOSITORY: &str = "lapstrake-failed";
/// How many images there are in it; the oldest go.
pub const FAILED_IMAGES: usize = 10;
/// Label of an image of a failed step: the build.
pub const FAILED_BUILD_LABEL: &str = "lapstrake.failed.build";
/// Label of an image of a failed step: which step, as progress calls it.
pub const FAILED_STEP_LABEL: &str = "lapstrake.failed.step";
/// Label of an image of a failed step: the process's exit code; 128 and more for a signal.
pub const FAILED_CODE_LABEL: &str = "lapstrake.failed.exit-code";
/// Label of an image of a failed step whose process was killed for want of memory: `true`.
pub const FAILED_OOM_LABEL: &str = "lapstrake.failed.oom";

/// Whether what a failed `RUN` leaves is kept as an image.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum KeepFailed {
    /// It is not.
    #[default]
    No,
    /// As `lapstrake-failed:` and the first digits of its id; the newest [`FAILED_IMAGES`] of these stay.
    Yes,
    /// Under this name, taken from whatever had it.
    As(Reference),
}

/// What became of a failed step that was to be kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum FailedImage {
    /// It is an image of this name.
    Kept(Reference),
    /// It could not be kept.
    Lost(String),
}

impl std::fmt::Display for FailedImage {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Kept(name) => write!(f, "what the failed step left is kept as image {}", name.familiar()),
            Self::Lost(why) => write!(f, "warning: what the failed step left could not be kept: {why}"),
        }
    }
}

/// The failed steps of one build, until it is known which of them fails it.
pub(crate) struct FailedSteps {
    build: BuildId,
    keep: KeepFailed,
    steps: Mutex<Vec<FailedStep>>,
}

/// A step that failed.
#[derive(Clone)]
pub(crate) struct FailedStep {
    pub(crate) vertex: Digest,
    /// As progress calls it.
    pub(crate) name: String,
    /// What it wrote over what it began with, or why that is lost.
    pub(crate) left: Result<Tree, String>,
    /// As the step had it.
    pub(crate) config: ImageConfig,
    pub(crate) code: i32,
    pub(crate) oom: bool,
}

impl FailedSteps {
    /// `None` when nothing is to be kept.
    pub(crate) fn of(build: &BuildId, keep: KeepFailed) -> Option<Arc<Self>> {
        (keep != KeepFailed::No)
            .then(|| Arc::new(Self { build: build.clone(), keep, steps: Mutex::default() }))
    }

    pub(crate) fn add(&self, step: FailedStep) {
        self.steps.lock().push(step);
    }

    /// Keeps the step that failed the build, if it is one. The error says where, or why not; it is the same otherwise.
    pub(crate) async fn keep(
        &self,
        error: EngineError,
        exporter: &Exporter,
        stores: &Stores,
        progress: &Progress,
    ) -> EngineError {
        let (true, Some(failed)) = (error.failed_process().is_some(), error.failed_vertex()) else {
            return error;
        };
        let step = self.steps.lock().iter().find(|step| step.vertex == *failed).cloned();
        let image = match step {
            Some(step) => {
                self.store(step, exporter, stores, progress).await.unwrap_or_else(FailedImage::Lost)
            }
            None => FailedImage::Lost("the step was that of another build".to_owned()),
        };
        if let FailedImage::Lost(why) = &image {
            tracing::warn!(build = self.build.0, why, "what a failed step left could not be kept");
        }
        EngineError::Keeping { error: Box::new(error), image }
    }

    async fn store(
        &self,
        step: FailedStep,
        exporter: &Exporter,
        stores: &Stores,
        progress: &Progress,
    ) -> Result<FailedImage, String> {
        let tree = step.left?;
        let mut config = step.config;
        let labels = &mut config.config.labels;
        let mut label = |name: &str, value: String| _ = labels.insert(name.to_owned(), value);
        label(FAILED_BUILD_LABEL, self.build.0.clone());
        label(FAILED_STEP_LABEL, step.name);
        label(FAILED_CODE_LABEL, step.code.to_string());
        if step.oom {
            label(FAILED_OOM_LABEL, true.to_string());
        }
        let platform = Platform::new(&config.os, &config.architecture).with_variant(&config.variant);
        let result =
            PlatformResult { platform, tree, config, base: None, epoch: None, attestations: Vec::new() };
        let vertex = internal_vertex(progress, "keeping what the failed step left");
        let names = |id: &ImageId| vec![self.name(id)];
        let exported = vertex.track(exporter.store(result, names, &vertex)).await;
        let exported = exported.map_err(|error| crate::classic::words(&error))?;
        let name = exported.names.into_iter().next().expect("it was given one");
        if self.keep == KeepFailed::Yes {
            let stores = stores.clone();
            let removed = StepError::blocking(move || forget_oldest(&stores)).await;
            if let Err(error) = removed {
                tracing::warn!(%error, "images of older failed steps could not be removed");
            }
        }
        Ok(FailedImage::Kept(name))
    }

    fn name(&self, id: &ImageId) -> Reference {
        match &self.keep {
            KeepFailed::As(name) => name.clone(),
            KeepFailed::Yes | KeepFailed::No => {
                Reference::parse(&format!("{FAILED_REPOSITORY}:{}", id.short())).expect("digits make a tag")
            }
        }
    }
}

/// What a container of the image begins as: where the step's process was, with a shell.
pub(crate) fn config(meta: &pb::Meta, platform: &Platform) -> ImageConfig {
    let mut config = ImageConfig::for_platform(platform);
    let container = &mut config.config;
    container.env.clone_from(&meta.env);
    container.working_dir.clone_from(&meta.cwd);
    container.user.clone_from(&meta.user);
    // The shell that the step itself had, where it had one.
    let shell = match meta.args.as_slice() {
        [shell, flag, _] if flag == "-c" => shell.as_str(),
        _ => "/bin/sh",
    };
    container.cmd = Some(vec![shell.to_owned()]);
    config
}

/// Removes what is more than [`FAILED_IMAGES`]. What has another name as well, or is in use, stays under that.
fn forget_oldest(stores: &Stores) -> Result<(), StoreError> {
    let own = |record: &ImageRecord| {
        let names = record.names.iter().map(|name| &name.reference);
        names.filter(|name| name.familiar_name() == FAILED_REPOSITORY).cloned().collect::<Vec<_>>()
    };
    let kept = stores.images.list()?.into_iter().map(|record| (own(&record), record));
    for (names, record) in kept.filter(|(names, _)| !names.is_empty()).skip(FAILED_IMAGES) {
        let mut gone = Ok(());
        if names.len() == record.names.len() && stores.images.children(&record.id)?.is_empty() {
            gone = stores.images.delete_image(&record.id).map(|_| ());
        } else {
            for name in &names {
                gone = gone.and(stores.images.untag(name).map(|_| ()));
            }
        }
        match gone {
            // By somebody else, just now; or later.
            Ok(()) | Err(StoreError::NotFound { .. } | StoreError::InUse { .. }) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_container_of_a_failed_step_is_where_its_process_was() {
        let meta = |args: &[&str]| pb::Meta {
            args: args.iter().map(|arg| (*arg).to_owned()).collect(),
            env: vec!["A=1".to_owned()],
            cwd: "/work".to_owned(),
            user: "1000:5".to_owned(),
            ..pb::Meta::default()
        };
        let of =
            |args: &[&str]| config(&meta(args), &Platform::new("linux", "arm64").with_variant("v8")).config;
        let shell = of(&["/bin/bash", "-c", "false"]);
        assert_eq!((shell.working_dir.as_str(), shell.user.as_str()), ("/work", "1000:5"));
        assert_eq!(shell.env, ["A=1"]);
        assert_eq!((shell.cmd, shell.entrypoint), (Some(vec!["/bin/bash".to_owned()]), None));
        assert_eq!(of(&["/app", "x"]).cmd, Some(vec!["/bin/sh".to_owned()]));
    }
}
