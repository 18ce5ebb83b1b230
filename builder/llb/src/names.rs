//! What a vertex is called when its author did not say.

use crate::pb::{self, file_action::Action, op::Op};
use crate::{Edge, Vertex};

/// BuildKit's default names. `vertices` holds at least the inputs.
pub(crate) fn default_name(op: &pb::Op, inputs: &[Edge], vertices: &[Vertex]) -> String {
    let name_of = |edge: &Edge| vertices[edge.vertex.0 as usize].name.as_str();
    let side = |input: i64| {
        let edge = usize::try_from(input).ok().and_then(|i| inputs.get(i));
        edge.map_or_else(|| "scratch".to_owned(), |edge| format!("({})", name_of(edge)))
    };
    match &op.op {
        Some(Op::Source(source)) => source.identifier.clone(),
        Some(Op::Exec(exec)) => exec.meta.as_ref().map(|meta| meta.args.join(" ")).unwrap_or_default(),
        Some(Op::File(file)) => file.actions.iter().filter_map(action_name).collect::<Vec<_>>().join(", "),
        Some(Op::Build(_)) => "build".to_owned(),
        Some(Op::Merge(_)) => {
            format!("merge ({})", inputs.iter().map(name_of).collect::<Vec<_>>().join(", "))
        }
        Some(Op::Diff(diff)) => format!(
            "diff {} -> {}",
            side(diff.lower.as_ref().map_or(-1, |l| l.input)),
            side(diff.upper.as_ref().map_or(-1, |u| u.input)),
        ),
        None => "unknown".to_owned(),
    }
}

fn action_name(action: &pb::FileAction) -> Option<String> {
    Some(match action.action.as_ref()? {
        Action::Mkdir(a) => format!("mkdir {}", a.path),
        Action::Mkfile(a) => format!("mkfile {}", a.path),
        Action::Symlink(a) => format!("symlink {} -> {}", a.newpath, a.oldpath),
        Action::Rm(a) => format!("rm {}", a.path),
        Action::Copy(a) => format!("copy {} {}", a.src, a.dest),
    })
}
