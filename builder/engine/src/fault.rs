//! Where in a Dockerfile a build failed.

use lapstrake_builder_dockerfile::{
    DockerfileOptions, Facts, LineRange,
    excerpt::{Mark, excerpt},
    source_info,
};
use lapstrake_builder_llb::{Definition, pb};

use crate::EngineError;

/// Where in its sources a build failed.
#[derive(Debug, Clone, PartialEq)]
pub struct Fault {
    /// The places at fault; the first is that of the cause.
    pub places: Vec<Place>,
    /// The words at fault, where they are known.
    pub mark: Option<Mark>,
}

/// Lines of a file: what BuildKit's clients get as `errdefs.Source`.
#[derive(Debug, Clone, PartialEq)]
pub struct Place {
    /// The file.
    pub source: pb::SourceInfo,
    /// The lines, as whoever made the graph says it.
    pub ranges: Vec<pb::Range>,
}

impl Fault {
    /// The lines at fault and what is around them, as BuildKit's clients print them, with the words at fault marked.
    pub fn excerpt(&self) -> String {
        let of = |place: &Place| {
            let text = String::from_utf8_lossy(&place.source.data);
            let lines = lines(&place.ranges)?;
            Some(excerpt(&place.source.filename, &text, &[lines], self.mark.as_ref()))
        };
        self.places.iter().filter_map(of).collect()
    }

    /// Where that is, in words: `Dockerfile:3`.
    pub fn place(&self) -> String {
        let Some(first) = self.places.first() else { return String::new() };
        let line = lines(&first.ranges).map_or(1, |lines| lines.start);
        format!("{}:{line}", first.source.filename)
    }
}

/// An error that is about lines of the Dockerfile, with those lines.
pub(crate) fn in_dockerfile(error: EngineError, options: &DockerfileOptions, facts: &Facts) -> EngineError {
    let (places, mark) = match &error {
        EngineError::Dockerfile(problem) => (problem.places(), problem.mark()),
        EngineError::NoImage { problem, .. } => (problem.places(), problem.mark()),
        other => (other.lines().into_iter().collect(), None),
    };
    match source_info(options, facts) {
        Ok(source) if !places.is_empty() => {
            let of = |lines: &LineRange| Place { source: source.clone(), ranges: by_line(*lines) };
            let places = places.iter().map(of).collect();
            at(error, Fault { places, mark })
        }
        _ => error,
    }
}

/// An error of a frontend that the Dockerfile names at `asked`: with those lines, unless it says better ones itself.
pub(crate) fn of_frontend(
    error: EngineError,
    asked: Option<LineRange>,
    options: &DockerfileOptions,
    facts: &Facts,
) -> EngineError {
    let is_placed = match error.inner() {
        EngineError::Returned(returned) => {
            returned.details.iter().any(|detail| detail.type_url.ends_with("errdefs.Source+json"))
        }
        _ => error.fault().is_some() || error.is_canceled(),
    };
    match (asked, source_info(options, facts)) {
        (Some(lines), Ok(source)) if !is_placed => {
            at(error, Fault { places: vec![Place { source, ranges: by_line(lines) }], mark: None })
        }
        _ => error,
    }
}

/// An error of a step, with the lines that the step comes from.
pub(crate) fn in_graph(error: EngineError, definition: &Definition) -> EngineError {
    let found = error.failed_vertex().and_then(|vertex| {
        let source = definition.source.as_ref()?;
        let locations = &source.locations.get(vertex.as_str())?.locations;
        let of = |location: &pb::Location| {
            let info = source.infos.get(usize::try_from(location.source_index).ok()?)?;
            lines(&location.ranges)?;
            Some(Place { source: info.clone(), ranges: location.ranges.clone() })
        };
        let places: Vec<Place> = locations.iter().filter_map(of).collect();
        (!places.is_empty()).then_some(Fault { places, mark: None })
    });
    match found {
        Some(fault) => at(error, fault),
        None => error,
    }
}

fn at(error: EngineError, fault: Fault) -> EngineError {
    EngineError::At { fault: Box::new(fault), error: Box::new(error) }
}

/// A range for each line, as BuildKit's Dockerfile frontend has it.
fn by_line(lines: LineRange) -> Vec<pb::Range> {
    let position = |line| Some(pb::Position { line: i32::try_from(line).unwrap_or(i32::MAX), character: 0 });
    lines.lines().map(|line| pb::Range { start: position(line), end: position(line) }).collect()
}

/// From the first line of all ranges to the last.
fn lines(ranges: &[pb::Range]) -> Option<LineRange> {
    let line = |position: &Option<pb::Position>| u32::try_from(position.as_ref()?.line).ok();
    let start = ranges.iter().filter_map(|range| line(&range.start)).min()?;
    let end = ranges.iter().filter_map(|range| line(&range.end)).max().unwrap_or(start);
    Some(LineRange::new(start, end))
}

#[cfg(test)]
mod tests {
    use lapstrake_builder_solver::SolveError;
    use lapstrake_layerstore_oci::Digest;
    use std::sync::Arc;

    use super::*;
    use crate::StepError;

    fn failed(vertex: &Digest) -> EngineError {
        let source = StepError::Exit { args: vec!["false".to_owned()], code: 1, oom: None };
        EngineError::Step(SolveError::Op {
            vertex: vertex.clone(),
            name: "[1/1] RUN false".to_owned(),
            source: Arc::new(source),
        })
    }

    #[test]
    fn a_failed_step_is_shown_where_it_was_written() {
        let vertex = Digest::sha256_of("v");
        let position = |line| Some(pb::Position { line, character: 0 });
        let range = |line| pb::Range { start: position(line), end: position(line) };
        let locations = pb::Locations {
            locations: vec![pb::Location { source_index: 0, ranges: vec![range(2), range(3)] }],
        };
        let info = pb::SourceInfo {
            filename: "sub/Dockerfile".to_owned(),
            data: b"FROM busybox\nRUN false \\\n  x\nRUN true\n".to_vec(),
            ..pb::SourceInfo::default()
        };
        let source = pb::Source {
            locations: [(vertex.to_string(), locations)].into_iter().collect(),
            infos: vec![info],
        };
        let definition = Definition { source: Some(source), ..Definition::default() };
        let error = in_graph(failed(&vertex), &definition);
        assert_eq!(error.to_string(), "process \"false\" did not complete successfully: exit code: 1");
        assert_eq!(error.failed_vertex(), Some(&vertex));
        assert!(error.failed_process().is_some() && matches!(error.inner(), EngineError::Step(_)));
        let excerpt = "sub/Dockerfile:2
--------------------
   1 |     FROM busybox
   2 | >>> RUN false \\
   3 | >>>   x
   4 |     RUN true
--------------------
";
        assert_eq!(error.fault().unwrap().excerpt(), excerpt);
        let elsewhere = in_graph(failed(&Digest::sha256_of("w")), &definition);
        assert!(elsewhere.fault().is_none());
    }
}
