//! The plan of a build: what the engine gets from a Dockerfile.

mod describe;

use std::sync::Arc;

use lapstrake_builder_llb::Definition;
use lapstrake_layerstore_oci::{Digest, ImageConfig, ImageId, Platform};

use crate::facts::{CopyQuery, Facts, Need, Place};
use crate::lint::Warning;
use crate::location::LineRange;
use crate::options::DockerfileOptions;
use crate::{Error, lower};

/// What planning comes to.
#[derive(Debug, Clone, PartialEq)]
pub enum Answer {
    /// Find these out, add them to the [`Facts`], and plan again. All that can be known to be needed is asked for at once.
    Need(Vec<Need>),
    /// Done.
    Plan(Box<Plan>),
}

/// Plans a build. Pure: the same options and facts give the same answer, however often it is asked.
pub fn plan(options: &DockerfileOptions, facts: &Facts) -> Result<Answer, Error> {
    plan_and_warn(options, facts).result
}

/// What planning came to, and what was doubtful on the way there.
#[derive(Debug, Clone, PartialEq)]
pub struct Planning {
    /// As of [`plan()`].
    pub result: Result<Answer, Error>,
    /// What was found until it ended; also where it failed. They are final once there are no more needs.
    pub warnings: Vec<Warning>,
}

/// [`plan()`], for those who want to hear doubts about a Dockerfile that cannot be planned, too.
pub fn plan_and_warn(options: &DockerfileOptions, facts: &Facts) -> Planning {
    let mut warnings = Vec::new();
    let result = lower::plan(options, facts, &mut warnings);
    Planning { result, warnings }
}

/// A planned build.
#[derive(Debug, Clone, PartialEq)]
pub struct Plan {
    /// One per platform that was asked for, in that order; one for the default platform if none was.
    pub targets: Vec<PlatformPlan>,
    /// Whether the result is an index even if there is one platform only.
    pub multi_platform: bool,
    /// Doubts about the Dockerfile, of the first platform only; for people, not failures.
    pub warnings: Vec<Warning>,
}

/// A planned build for one platform.
#[derive(Debug, Clone, PartialEq)]
pub struct PlatformPlan {
    /// Which, in normal form.
    pub platform: Platform,
    /// The graph; empty ([`Definition::is_scratch`]) if the result is the empty file system.
    pub definition: Definition,
    /// The resulting image's config: complete but for the layers and times that only running tells.
    ///
    /// History of the base image comes first, with its layers; then an entry per instruction, `empty_layer` where it changes no file.
    /// The diff IDs are those of the base image.
    pub config: ImageConfig,
    /// The base image's config as it was, for `rewrite-timestamp` and inheritance labels.
    pub base_config: Option<ImageConfig>,
    /// `SOURCE_DATE_EPOCH` in seconds since 1970.
    pub epoch: Option<i64>,
    /// Whether no cached result may be used for the target stage.
    pub ignore_cache: bool,
    /// For the classic transcript: every instruction of every planned stage, in order.
    pub steps: Vec<Step>,
    /// What an SBOM scanner should look at besides the result: name and graph.
    pub scans: Vec<(String, Definition)>,
    /// What the classic dialect adds; `None` for BuildKit's.
    pub classic: Option<ClassicPlan>,
}

/// What the classic dialect adds to a plan.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct ClassicPlan {
    /// Stages that the result does not need, and that are built nevertheless.
    pub others: Vec<Definition>,
    /// How many steps the transcript counts, those after a failure included.
    pub total: usize,
    /// Why the build fails once everything that is planned has run; then the plan ends with the instruction at fault.
    pub failure: Option<Error>,
    /// Build arguments that no instruction declared, sorted.
    pub unused_args: Vec<String>,
    /// What is copied by instructions whose history needs a hash that is not among [`Facts::copied`] yet.
    pub copies: Vec<CopyQuery>,
    /// All stages, in the order of the Dockerfile.
    pub stages: Vec<StageHistory>,
    /// For each entry of the config's history after those of the base image: the vertex whose result the image's files are as of
    /// then. `None` for what changes the config alone, and for what an image gives.
    pub made: Vec<Option<Digest>>,
}

/// What a stage would be known by in an image's history: what `--cache-from` compares.
#[derive(Debug, Clone, PartialEq)]
pub struct StageHistory {
    /// Its number in the Dockerfile.
    pub stage: usize,
    /// The config of the image at its root, if it is not made from nothing.
    pub base: Option<Arc<ImageConfig>>,
    /// Entries after those of that image, from first to last.
    pub entries: Vec<StageEntry>,
    /// How many of them are those of the stages that it starts from.
    pub inherited: usize,
    /// What it is to run on.
    pub platform: Platform,
}

/// One instruction in a [`StageHistory`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StageEntry {
    /// As in the history.
    pub created_by: String,
    /// Whether `created_by` is all that the result depends on besides what is before it.
    pub complete: bool,
    /// What is to be known for `created_by` to be complete.
    pub copy: Option<Place>,
    /// Whether the instruction may change files.
    pub changes_files: bool,
}

/// One line `Step n/m : …` of the classic transcript.
#[derive(Debug, Clone, PartialEq)]
pub struct Step {
    /// Its stage, counted from 0 among the stages of the Dockerfile; `None` for an `ARG` before the first `FROM`.
    pub stage: Option<usize>,
    /// The stage's name.
    pub stage_name: Option<String>,
    /// The instruction as Moby prints it; an `ONBUILD` trigger's text for a step that it brought.
    pub text: String,
    /// What it is, as far as the transcript cares.
    pub kind: StepKind,
    /// The vertex that it became. Several instructions may have become the same vertex.
    pub vertex: Option<Digest>,
    /// Changes with everything that the image is after this step: to be printed as ` ---> <12 hex>`.
    pub state: Digest,
    /// Where it was written (the `FROM` line for triggers).
    pub lines: LineRange,
    /// Whether it is an `ONBUILD` trigger: Moby runs it, but prints no `Step` line for it and does not count it.
    pub trigger: bool,
    /// Whether its result is that of an image ([`Facts::restored`]).
    pub restored: bool,
}

impl Step {
    /// Whether it changes nothing but the config.
    pub fn is_metadata_only(&self) -> bool {
        self.vertex.is_none()
    }
}

/// What a step is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum StepKind {
    /// `ARG` before the first `FROM`.
    GlobalArg,
    /// `FROM`.
    From {
        /// The base image if it is one, and in the local store.
        image_id: Option<ImageId>,
        /// Whether it starts from nothing (Moby prints ` ---> ` and no id).
        scratch: bool,
        /// How many `ONBUILD` triggers follow as steps (Moby announces them).
        triggers: usize,
    },
    /// `RUN`: with its command line, for `The command '…' returned a non-zero code`.
    Run {
        /// The words that are executed.
        args: Vec<String>,
    },
    /// `COPY` or `ADD`, which need no container.
    Copy,
    /// Anything else.
    Other,
    /// The instruction at which the build fails ([`ClassicPlan::failure`]): named, and nothing more said.
    Failed,
}
