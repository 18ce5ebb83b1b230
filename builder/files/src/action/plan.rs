//! Which actions run, in which order, and whose results are committed. Facts: BuildKit's `FileOpSolver`.

use lapstrake_builder_llb::pb::{self, file_action::Action, user_opt::User};

use crate::FilesError;

/// What an index of an action means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Input {
    /// Nothing to begin with.
    Scratch,
    /// An input of the op.
    Given(usize),
    /// The result of an action.
    Made(usize),
}

#[derive(Debug, PartialEq, Eq)]
pub(super) struct Plan {
    inputs: usize,
    /// Actions that an output needs, each after those that it needs.
    pub(super) order: Vec<usize>,
    /// By action: whether its result is a tree of its own, because it is an output or because more than one other action,
    /// or one that only reads it, needs it.
    pub(super) committed: Vec<bool>,
    /// The action of each output.
    pub(super) outputs: Vec<usize>,
}

impl Plan {
    pub(super) fn new(actions: &[pb::FileAction], inputs: usize) -> Result<Self, FilesError> {
        let invalid = |what: String| Err(FilesError::Invalid { what });
        let provided = inputs + actions.len();
        let in_range = |index: i64| index == -1 || usize::try_from(index).is_ok_and(|index| index < provided);
        let mut outputs = vec![None; actions.len()];
        for (index, action) in actions.iter().enumerate() {
            for input in [action.input, action.secondary_input].into_iter().chain(owner_inputs(action)) {
                if !in_range(input) {
                    return invalid(format!("invalid input index {input}, {provided} provided"));
                }
            }
            if action.output == -1 {
                continue;
            }
            match usize::try_from(action.output).ok().and_then(|output| outputs.get_mut(output)) {
                Some(Some(_)) => return invalid(format!("duplicate output {}", action.output)),
                Some(place) => *place = Some(index),
                None => return invalid(format!("output {} of {} actions", action.output, actions.len())),
            }
        }
        let count = outputs.iter().flatten().count();
        if count == 0 {
            return invalid("no outputs specified".to_owned());
        }
        if let Some(missing) = outputs[..count].iter().position(Option::is_none) {
            return invalid(format!("missing output index {missing}"));
        }
        let mut plan = Self {
            inputs,
            order: Vec::new(),
            committed: vec![false; actions.len()],
            outputs: outputs.into_iter().flatten().collect(),
        };
        plan.put_in_order(actions)?;
        plan.find_committed(actions);
        Ok(plan)
    }

    /// What an index, which is in range, means.
    pub(super) fn input(&self, index: i64) -> Input {
        match usize::try_from(index) {
            Err(_) => Input::Scratch,
            Ok(index) => match index.checked_sub(self.inputs) {
                None => Input::Given(index),
                Some(action) => Input::Made(action),
            },
        }
    }

    fn needs(&self, action: &pb::FileAction) -> Vec<usize> {
        let indexes = [action.input, action.secondary_input].into_iter().chain(owner_inputs(action));
        indexes
            .filter_map(|index| match self.input(index) {
                Input::Made(action) => Some(action),
                Input::Scratch | Input::Given(_) => None,
            })
            .collect()
    }

    fn put_in_order(&mut self, actions: &[pb::FileAction]) -> Result<(), FilesError> {
        #[derive(Clone, Copy, PartialEq)]
        enum Mark {
            New,
            Open,
            Done,
        }
        let mut marks = vec![Mark::New; actions.len()];
        let mut stack = self.outputs.clone();
        // Not recursive: a chain may be as long as an op may be large.
        while let Some(&index) = stack.last() {
            match marks[index] {
                Mark::Done => {
                    stack.pop();
                }
                Mark::Open => {
                    marks[index] = Mark::Done;
                    self.order.push(index);
                    stack.pop();
                }
                Mark::New => {
                    marks[index] = Mark::Open;
                    for need in self.needs(&actions[index]) {
                        match marks[need] {
                            Mark::New => stack.push(need),
                            Mark::Done => {}
                            Mark::Open => {
                                let index = self.inputs + need;
                                return Err(FilesError::Invalid { what: format!("loop from index {index}") });
                            }
                        }
                    }
                }
            }
        }
        Ok(())
    }

    fn find_committed(&mut self, actions: &[pb::FileAction]) {
        let mut written = vec![0usize; actions.len()];
        for index in &self.order {
            let action = &actions[*index];
            if let Input::Made(primary) = self.input(action.input) {
                written[primary] += 1;
            }
            let read = std::iter::once(action.secondary_input)
                .chain(owner_inputs(action).into_iter().filter(|input| *input != action.input));
            for input in read {
                if let Input::Made(read) = self.input(input) {
                    self.committed[read] = true;
                }
            }
        }
        for (committed, written) in self.committed.iter_mut().zip(written) {
            *committed |= written > 1;
        }
        for output in &self.outputs {
            self.committed[*output] = true;
        }
    }
}

/// The inputs in which an action looks up names of owners.
fn owner_inputs(action: &pb::FileAction) -> Vec<i64> {
    let owner = match &action.action {
        Some(Action::Mkdir(mkdir)) => mkdir.owner.as_ref(),
        Some(Action::Mkfile(mkfile)) => mkfile.owner.as_ref(),
        Some(Action::Symlink(symlink)) => symlink.owner.as_ref(),
        Some(Action::Copy(copy)) => copy.owner.as_ref(),
        Some(Action::Rm(_)) | None => None,
    };
    let Some(owner) = owner else { return Vec::new() };
    [&owner.user, &owner.group]
        .into_iter()
        .filter_map(|who| match who.as_ref()?.user.as_ref()? {
            User::ByName(name) => Some(name.input),
            User::ById(_) => None,
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn action(input: i64, secondary_input: i64, output: i64) -> pb::FileAction {
        let action = Some(Action::Mkdir(pb::FileActionMkDir::default()));
        pb::FileAction { input, secondary_input, output, action }
    }

    #[test]
    fn a_chain_is_committed_at_its_end_only() {
        let plan = Plan::new(&[action(0, 1, -1), action(2, 1, -1), action(3, 1, 0)], 2).unwrap();
        assert_eq!(plan.order, [0, 1, 2]);
        assert_eq!(plan.committed, [false, false, true]);
        assert_eq!(plan.outputs, [2]);
    }

    #[test]
    fn what_is_used_twice_or_only_read_is_committed() {
        let twice = Plan::new(&[action(-1, -1, -1), action(0, -1, 0), action(0, -1, 1)], 0).unwrap();
        assert_eq!(twice.committed, [true, true, true]);
        let read = Plan::new(&[action(-1, -1, -1), action(-1, 0, 0)], 0).unwrap();
        assert_eq!(read.committed, [true, true]);
    }

    #[test]
    fn actions_that_no_output_needs_do_not_run() {
        let plan = Plan::new(&[action(-1, -1, -1), action(-1, -1, 0)], 0).unwrap();
        assert_eq!(plan.order, [1]);
    }

    #[test]
    fn ops_that_can_never_run_are_refused() {
        for (actions, expected) in [
            (vec![], "no outputs specified"),
            (vec![action(0, -1, -1)], "no outputs specified"),
            (vec![action(5, -1, 0)], "invalid input index 5, 2 provided"),
            (vec![action(0, -2, 0)], "invalid input index -2, 2 provided"),
            (vec![action(0, -1, 0), action(0, -1, 0)], "duplicate output 0"),
            (vec![action(0, -1, 1), action(0, -1, -1)], "missing output index 0"),
            (vec![action(0, -1, 7)], "output 7 of 1 actions"),
            (vec![action(1, -1, 0)], "loop from index 1"),
            (vec![action(2, -1, 0), action(1, -1, -1)], "loop from index 1"),
        ] {
            let error = Plan::new(&actions, 1).unwrap_err();
            assert_eq!(error.to_string(), format!("invalid file op: {expected}"));
        }
    }

    #[test]
    fn an_action_that_is_needed_on_two_ways_runs_once() {
        let actions = [action(-1, -1, -1), action(0, -1, -1), action(1, 0, 0)];
        assert_eq!(Plan::new(&actions, 0).unwrap().order, [0, 1, 2]);
    }
}
