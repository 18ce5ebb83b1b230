//! Whether an op's parts fit together, so that nobody downstream meets a missing message or an index out of range.

use std::collections::HashSet;

use crate::pb::{self, file_action::Action, op::Op};
use crate::{Error, Passthrough};

/// The index that means "no input" or "no output".
const NONE: i64 = -1;

/// Checks an op by itself; the error says what is wrong with it.
pub(crate) fn op(op: &pb::Op, passthrough: Option<&Passthrough>) -> Result<(), String> {
    let inputs = op.inputs.len();
    match &op.op {
        None => match passthrough {
            Some(passthrough) => passthrough_op(passthrough, inputs),
            None => Err("invalid nil op".to_owned()),
        },
        Some(Op::Source(source)) if source.identifier.is_empty() => {
            Err("source identifier can't be empty".to_owned())
        }
        Some(Op::Source(_)) => Ok(()),
        Some(Op::Exec(exec)) => exec_op(exec, inputs),
        Some(Op::File(file)) => file_op(file, inputs),
        Some(Op::Build(build)) => {
            input(build.builder, inputs, "build op builder")?;
            build.inputs.values().try_for_each(|i| required_input(i.input, inputs, "build op"))
        }
        Some(Op::Merge(merge)) => {
            merge.inputs.iter().try_for_each(|i| required_input(i.input, inputs, "merge op"))
        }
        Some(Op::Diff(diff)) => {
            let (Some(lower), Some(upper)) = (&diff.lower, &diff.upper) else {
                return Err("invalid diff op with nil lower or upper input".to_owned());
            };
            input(lower.input, inputs, "diff op lower")?;
            input(upper.input, inputs, "diff op upper")
        }
    }
}

fn exec_op(exec: &pb::ExecOp, inputs: usize) -> Result<(), String> {
    let Some(meta) = &exec.meta else { return Err("invalid exec op with no meta".to_owned()) };
    if meta.args.is_empty() {
        return Err("invalid exec op with no args".to_owned());
    }
    if exec.mounts.is_empty() {
        return Err("invalid exec op with no mounts".to_owned());
    }
    if !exec.mounts.iter().any(|m| m.dest == "/") {
        return Err("invalid exec op with no rootfs".to_owned());
    }
    if pb::NetMode::try_from(exec.network).is_err() {
        return Err(format!("invalid network mode {}", exec.network));
    }
    if pb::SecurityMode::try_from(exec.security).is_err() {
        return Err(format!("invalid security mode {}", exec.security));
    }
    let mut outputs = HashSet::new();
    for mount in &exec.mounts {
        input(mount.input, inputs, "exec op mount")?;
        if mount.output < NONE || mount.output > i64::from(u32::MAX) {
            return Err(format!("exec op mount {} has invalid output index {}", mount.dest, mount.output));
        }
        if mount.output != NONE && !mount_has_no_output(mount) && !outputs.insert(mount.output) {
            return Err(format!("exec op has two mounts with output index {}", mount.output));
        }
        mount_type(mount)?;
    }
    Ok(())
}

fn passthrough_op(op: &Passthrough, inputs: usize) -> Result<(), String> {
    if op.id.is_empty() {
        return Err("invalid passthrough op with no id".to_owned());
    }
    if op.outputs.is_empty() {
        return Err("invalid passthrough op with no outputs".to_owned());
    }
    let invalid = |input: &&i64| usize::try_from(**input).map_or(true, |input| input >= inputs);
    match op.outputs.iter().find(invalid) {
        Some(input) => Err(format!("invalid passthrough output input index {input}")),
        None => Ok(()),
    }
}

/// Secret and ssh mounts leave their output at 0 and have none.
fn mount_has_no_output(mount: &pb::Mount) -> bool {
    matches!(mount.mount_type(), pb::MountType::Secret | pb::MountType::Ssh)
}

fn mount_type(mount: &pb::Mount) -> Result<(), String> {
    let Ok(kind) = pb::MountType::try_from(mount.mount_type) else {
        return Err(format!("mount {} has unknown type {}", mount.dest, mount.mount_type));
    };
    let missing = match kind {
        pb::MountType::Cache => mount.cache_opt.is_none().then_some("cache"),
        pb::MountType::Secret => mount.secret_opt.is_none().then_some("secret"),
        pb::MountType::Ssh => mount.ssh_opt.is_none().then_some("ssh"),
        pb::MountType::Bind | pb::MountType::Tmpfs => None,
    };
    match missing {
        Some(kind) => Err(format!("missing {kind} mount options for {}", mount.dest)),
        None => Ok(()),
    }
}

fn file_op(file: &pb::FileOp, inputs: usize) -> Result<(), String> {
    if file.actions.is_empty() {
        return Err("invalid file op with no actions".to_owned());
    }
    let slots = inputs + file.actions.len();
    let mut outputs = HashSet::new();
    for (i, action) in file.actions.iter().enumerate() {
        input(action.input, slots, "file op action")?;
        input(action.secondary_input, slots, "file op action")?;
        if action.output < NONE || action.output > i64::from(u32::MAX) {
            return Err(format!("file op action {i} has invalid output index {}", action.output));
        }
        if action.output != NONE && !outputs.insert(action.output) {
            return Err(format!("file op has two actions with output index {}", action.output));
        }
        // An action may build on others of the same op. BuildKit's client only ever names earlier ones, and demanding that rules out
        // loops.
        for needed in [action.input, action.secondary_input] {
            if usize::try_from(needed).is_ok_and(|n| n >= inputs + i) {
                return Err(format!("file op action {i} depends on itself or a later action"));
            }
        }
        let owner = match &action.action {
            None => return Err(format!("file op action {i} is nil")),
            Some(Action::Copy(a)) => &a.owner,
            Some(Action::Mkfile(a)) => &a.owner,
            Some(Action::Mkdir(a)) => &a.owner,
            Some(Action::Symlink(a)) => &a.owner,
            Some(Action::Rm(_)) => &None,
        };
        let users = owner.iter().flat_map(|o| [&o.user, &o.group]).flatten();
        for user in users {
            if let Some(pb::user_opt::User::ByName(named)) = &user.user {
                input(named.input, inputs, "file op owner")?;
            }
        }
    }
    Ok(())
}

fn input(index: i64, inputs: usize, what: &str) -> Result<(), String> {
    if index == NONE { Ok(()) } else { required_input(index, inputs, what) }
}

fn required_input(index: i64, inputs: usize, what: &str) -> Result<(), String> {
    match usize::try_from(index) {
        Ok(i) if i < inputs => Ok(()),
        _ => Err(format!("{what} has invalid input index {index}, there are {inputs} inputs")),
    }
}

/// Checks that every location names a file.
pub(crate) fn source(source: &pb::Source) -> Result<(), Error> {
    let locations = source.locations.values().flat_map(|l| &l.locations);
    for location in locations {
        let known = usize::try_from(location.source_index).is_ok_and(|i| i < source.infos.len());
        if !known {
            return Err(Error::SourceMapIndex(location.source_index));
        }
    }
    Ok(())
}
