//! A plan as text: for people, and for goldens.

use std::fmt::Write as _;

use lapstrake_builder_llb::{Graph, Limits, dump};

use super::{Plan, PlatformPlan};
use crate::Error;
use crate::lower::LowerError;

impl Plan {
    /// What would be built: per platform the graph, vertex by vertex, and what became of each instruction. The same plan gives the same
    /// text; the image's config is not in it.
    ///
    /// Fails only for a graph that is larger than any that would be solved.
    pub fn describe(&self) -> Result<String, Error> {
        let targets: Vec<String> =
            self.targets.iter().map(PlatformPlan::describe).collect::<Result<_, _>>()?;
        Ok(targets.join("\n"))
    }
}

impl PlatformPlan {
    fn describe(&self) -> Result<String, Error> {
        let mut text = format!("platform: {}\n", self.platform);
        if self.definition.is_scratch() {
            text.push_str("result: scratch\n");
        } else {
            let graph = Graph::parse(&self.definition, Limits::default())
                .map_err(|e| LowerError::Graph(e).nowhere())?;
            text.push_str(&dump(&graph));
        }
        for step in &self.steps {
            let mark = if step.trigger { "trigger" } else { "step" };
            let vertex = step.vertex.as_ref().map_or("-", |digest| digest.short());
            let _ = writeln!(text, "{mark}: {} -> {vertex}", step.text.replace('\n', "\\n"));
        }
        for (name, definition) in &self.scans {
            let _ = writeln!(text, "scan: {name} ({} ops)", definition.ops.len());
        }
        Ok(text)
    }
}
