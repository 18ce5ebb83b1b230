//! Actions of a file op.
//!
//! ```text
//!   FileOp ─ plan: which actions, in which order, whose result is shared
//!             └─► each action on a draft of its input: mkdir, mkfile, symlink, rm (single), copy (copy, copier, content)
//! ```
//!
//! A chain of actions writes one draft, so that it becomes one layer; it is committed where somebody else needs it.

mod content;
mod copier;
mod copy;
mod mode;
mod owner;
mod plan;
mod single;

use std::{
    os::fd::{AsFd as _, BorrowedFd, OwnedFd},
    path::PathBuf,
};

use lapstrake_builder_llb::pb::{self, file_action::Action};
use lapstrake_layerstore_store::{Draft, OpenSnapshot, SnapshotMount, Stores, Tree};
use rustix::fs::{Mode, OFlags};
use tokio_util::sync::CancellationToken;

pub(crate) use copier::{Lender, Lent};
pub(crate) use copy::copy_tree;

use self::{
    copier::Target,
    owner::Owner,
    plan::{Input, Plan},
};
use crate::{FilesError, at, layers};

/// Runs the actions of a file op and gives its outputs.
///
/// Blocks. Ends with [`FilesError::Canceled`] soon after `cancel`. After an error nothing of it is left. Errors of one action
/// are [`FilesError::Action`].
pub fn apply(
    stores: &Stores,
    op: &pb::FileOp,
    inputs: &[Tree],
    cancel: &CancellationToken,
) -> Result<Vec<Tree>, FilesError> {
    apply_with(stores, op, inputs, UnknownOwner::IsRoot, None, cancel)
}

/// What becomes of an owner whose name is nobody's in the tree.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum UnknownOwner {
    /// It is root, as to BuildKit.
    IsRoot,
    /// It is [`FilesError::UnknownOwner`], as to Moby's classic builder.
    IsAnError,
}

/// [`apply`], with a say in what an unknown owner is. Where an action fails, `left` gets what the actions made until then, by their number; of the
/// one that failed, what it had written. An action whose result another one went on with has none by itself.
pub fn apply_with(
    stores: &Stores,
    op: &pb::FileOp,
    inputs: &[Tree],
    unknown: UnknownOwner,
    left: Option<&mut Vec<Option<Tree>>>,
    cancel: &CancellationToken,
) -> Result<Vec<Tree>, FilesError> {
    let plan = Plan::new(&op.actions, inputs.len())?;
    let mut run = Run { stores, inputs, unknown, cancel, made: op.actions.iter().map(|_| None).collect() };
    if let Err(error) = run.all(op, &plan) {
        if let Some(left) = left {
            left.extend(run.made.into_iter().map(|made| made.and_then(Made::left)));
        }
        return Err(error);
    }
    let outputs = plan.outputs.iter().map(|index| match &run.made[*index] {
        Some(Made::Tree(tree)) => tree.clone(),
        _ => unreachable!("the plan runs and commits outputs"),
    });
    Ok(outputs.collect())
}

/// The result of an action.
enum Made {
    Tree(Tree),
    Working(Box<Working>),
}

impl Made {
    /// What there is of it after a failure. Nobody needs it to be there.
    fn left(self) -> Option<Tree> {
        match self {
            Self::Tree(tree) => Some(tree),
            Self::Working(working) => working.commit().ok(),
        }
    }
}

/// A draft that is open for writing.
struct Working {
    // Closed before the draft is committed or discarded.
    open: OpenSnapshot,
    draft: Draft,
    /// Where an overlay's changes go.
    upper: Option<OwnedFd>,
    /// Whether something was written there directly, of which the open overlay need not know.
    stale: bool,
    /// Which of its files are another snapshot's.
    lent: Lent,
}

impl Working {
    fn begin(stores: &Stores, tree: &Tree) -> Result<Self, FilesError> {
        let draft = stores.begin(tree)?;
        let open = draft.open()?;
        let upper = match draft.mount() {
            SnapshotMount::Overlay { upper: Some(upper), .. } => Some(
                rustix::fs::open(&upper.upper, at::HANDLE | OFlags::DIRECTORY, Mode::empty())
                    .map_err(FilesError::io("open", &upper.upper))?,
            ),
            SnapshotMount::Overlay { upper: None, .. } | SnapshotMount::Bind { .. } => None,
        };
        Ok(Self { open, draft, upper, stale: false, lent: Lent::default() })
    }

    /// Open for another action.
    fn again(self) -> Result<Self, FilesError> {
        if !self.stale {
            return Ok(self);
        }
        drop(self.open);
        Ok(Self { open: self.draft.open()?, stale: false, ..self })
    }

    fn commit(self) -> Result<Tree, FilesError> {
        drop(self.open);
        Ok(self.draft.commit()?)
    }
}

/// A tree that is read.
pub(crate) struct View {
    open: OpenSnapshot,
    /// The directories that it consists of, top-most first.
    directories: Vec<PathBuf>,
    // What the empty tree is read from.
    _draft: Option<Draft>,
}

impl View {
    pub(crate) fn open(stores: &Stores, tree: &Tree) -> Result<Self, FilesError> {
        if let Some(mount) = stores.mount(tree)? {
            let open = OpenSnapshot::open(&mount)?;
            let directories = match mount {
                SnapshotMount::Bind { source, .. } => vec![source],
                SnapshotMount::Overlay { lower, .. } => lower,
            };
            return Ok(Self { open, directories, _draft: None });
        }
        let draft = stores.begin(tree)?;
        Ok(Self { open: draft.open()?, directories: Vec::new(), _draft: Some(draft) })
    }

    pub(crate) fn root(&self) -> BorrowedFd<'_> {
        self.open.root()
    }
}

struct Run<'a> {
    stores: &'a Stores,
    inputs: &'a [Tree],
    unknown: UnknownOwner,
    cancel: &'a CancellationToken,
    made: Vec<Option<Made>>,
}

impl Run<'_> {
    /// Runs all actions. What they made is in `made`, also after an error.
    fn all(&mut self, op: &pb::FileOp, plan: &Plan) -> Result<(), FilesError> {
        for index in &plan.order {
            let action = &op.actions[*index];
            self.run(*index, action, plan).map_err(|source| match source {
                FilesError::Canceled => FilesError::Canceled,
                source => {
                    FilesError::Action { index: *index, what: describe(action), source: Box::new(source) }
                }
            })?;
        }
        Ok(())
    }

    fn run(&mut self, index: usize, action: &pb::FileAction, plan: &Plan) -> Result<(), FilesError> {
        if self.cancel.is_cancelled() {
            return Err(FilesError::Canceled);
        }
        let mut working = self.primary(plan.input(action.input))?;
        let done = self.write(&mut working, action, plan);
        if done.is_ok() && plan.committed[index] {
            self.made[index] = Some(Made::Tree(working.commit()?));
        } else {
            self.made[index] = Some(Made::Working(Box::new(working)));
        }
        done
    }

    fn write(&self, working: &mut Working, action: &pb::FileAction, plan: &Plan) -> Result<(), FilesError> {
        let root = working.open.root();
        match &action.action {
            Some(Action::Mkdir(mkdir)) => {
                let owner = self.owner(mkdir.owner.as_ref(), action, plan, root)?;
                single::mkdir(root, mkdir, owner)?;
            }
            Some(Action::Mkfile(mkfile)) => {
                let owner = self.owner(mkfile.owner.as_ref(), action, plan, root)?;
                single::mkfile(root, mkfile, owner, working.lent.is_some())?;
            }
            Some(Action::Symlink(symlink)) => {
                let owner = self.owner(symlink.owner.as_ref(), action, plan, root)?;
                single::symlink(root, symlink, owner)?;
            }
            Some(Action::Rm(rm)) => single::rm(root, rm, self.cancel)?,
            Some(Action::Copy(copy)) => {
                let tree = self.tree(plan.input(action.secondary_input));
                let source = View::open(self.stores, &tree)?;
                let owner = self.owner(copy.owner.as_ref(), action, plan, root)?;
                let upper = working.upper.as_ref().map(|upper| upper.as_fd());
                let kept_in = upper.unwrap_or(root);
                let mut lender =
                    Lender::new(&source.directories, &working.draft, kept_in, &mut working.lent)?;
                let target = Target { root, upper, lender: Some(&mut lender) };
                working.stale = copy::copy(source.root(), target, copy, owner, self.cancel)?;
                lender.settle(|| {
                    let mut names = layers::chain(self.stores, &tree)?;
                    names.reverse();
                    Ok(names)
                })?;
            }
            None => return Err(FilesError::Invalid { what: "an action without a kind".to_owned() }),
        }
        Ok(())
    }

    /// What an action writes to.
    fn primary(&mut self, input: Input) -> Result<Working, FilesError> {
        match input {
            Input::Scratch => Working::begin(self.stores, &Tree::empty()),
            Input::Given(index) => Working::begin(self.stores, &self.inputs[index]),
            Input::Made(index) => match self.made[index].take() {
                Some(Made::Working(working)) => working.again(),
                Some(Made::Tree(tree)) => {
                    let working = Working::begin(self.stores, &tree);
                    self.made[index] = Some(Made::Tree(tree));
                    working
                }
                None => unreachable!("the plan orders actions after what they need"),
            },
        }
    }

    /// What an action reads.
    fn tree(&self, input: Input) -> Tree {
        match input {
            Input::Scratch => Tree::empty(),
            Input::Given(index) => self.inputs[index].clone(),
            Input::Made(index) => match &self.made[index] {
                Some(Made::Tree(tree)) => tree.clone(),
                _ => unreachable!("the plan commits what is read"),
            },
        }
    }

    fn owner(
        &self,
        wanted: Option<&pb::ChownOpt>,
        action: &pb::FileAction,
        plan: &Plan,
        primary: BorrowedFd<'_>,
    ) -> Result<Option<Owner>, FilesError> {
        let Some(wanted) = wanted else { return Ok(None) };
        Owner::look_up(wanted, self.unknown, |input, read| {
            if input < 0 {
                return Err(FilesError::Invalid { what: format!("invalid user index: {input}") });
            }
            // Names are looked up in what the action begins with, which is open already.
            if input == action.input {
                return read(primary);
            }
            read(View::open(self.stores, &self.tree(plan.input(input)))?.root())
        })
        .map(Some)
    }
}

fn describe(action: &pb::FileAction) -> String {
    match &action.action {
        Some(Action::Mkdir(mkdir)) => format!("mkdir {}", mkdir.path),
        Some(Action::Mkfile(mkfile)) => format!("mkfile {}", mkfile.path),
        Some(Action::Symlink(symlink)) => format!("symlink {} -> {}", symlink.newpath, symlink.oldpath),
        Some(Action::Rm(rm)) => format!("rm {}", rm.path),
        Some(Action::Copy(copy)) => format!("copy {} to {}", copy.src, copy.dest),
        None => "file action".to_owned(),
    }
}
