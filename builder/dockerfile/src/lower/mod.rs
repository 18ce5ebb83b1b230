//! From the syntax tree to a graph.

mod problem;

pub use problem::LowerError;

use crate::Error;
use crate::facts::Facts;
use crate::options::DockerfileOptions;
use crate::plan::Answer;

pub(crate) fn plan(_options: &DockerfileOptions, _facts: &Facts) -> Result<Answer, Error> {
    Err(Error::Lower { problem: LowerError::EmptyDockerfile, lines: Vec::new() })
}
