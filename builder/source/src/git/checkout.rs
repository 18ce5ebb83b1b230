//! From a commit in a bare repository to a tree.

use std::{
    ffi::OsStr,
    io,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    path::Path,
    sync::Arc,
};

use lapstrake_layerstore_store::{Draft, Tree};
use rustix::{
    fs::{AtFlags, CWD, FileType, Mode, OFlags, RenameFlags, Timespec, Timestamps},
    io::Errno,
};

use super::{
    Git,
    program::{GitCommand, GitSsh},
    repository::{Pinned, Repository, object_format},
    url::is_commit,
};
use crate::{
    SourceError,
    local::{Owner, Seen, SelectedTree, Selection, open_beneath},
    sources::Shared,
};

/// Checks the pinned commit out into a new tree. Nothing stays when it fails or is dropped.
pub(super) async fn checkout(
    shared: &Arc<Shared>,
    git: &Git<'_>,
    repository: &Repository,
    pinned: &Pinned,
) -> Result<Tree, SourceError> {
    let commit = repository.commit(git, pinned).await?;
    let draft = {
        let stores = shared.stores.clone();
        SourceError::blocking(move || stores.begin(&Tree::empty())).await?
    };
    // A path that git's own processes can use.
    let dir = draft.directory().cloned().ok_or_else(|| SourceError::Unsuitable {
        origin: git.spec.origin(),
        why: "an empty tree has no directory of its own here".to_owned(),
    })?;
    let out = Checkout { git, repository, pinned, commit: &commit, dir: &dir };
    if git.spec.keep_git_dir && git.spec.subdir.is_empty() {
        out.with_git_dir().await?;
    } else {
        out.files_only(&shared.root).await?;
    }
    let time = if git.spec.commit_times { Some(out.commit_time().await?) } else { None };
    SourceError::blocking(move || settle(draft, &dir, time)).await
}

struct Checkout<'a> {
    git: &'a Git<'a>,
    repository: &'a Repository,
    pinned: &'a Pinned,
    commit: &'a str,
    dir: &'a Path,
}

impl Checkout<'_> {
    /// Files alone. Git's own state is in a repository that lives as long as this and borrows the objects of the bare one: submodules would
    /// leave their settings in that.
    async fn files_only(&self, root: &Path) -> Result<(), SourceError> {
        std::fs::create_dir_all(root).map_err(SourceError::io("make", root))?;
        let made = SourceError::io("make a repository in", root);
        let borrowed = tempfile::Builder::new().prefix("checkout-").tempdir_in(root).map_err(made)?;
        let git_dir = borrowed.path().join("git");
        let run = |args: &[&str]| self.git.run(GitCommand::new(args.iter().copied()).in_dir(&git_dir));
        run(&["init", "--quiet", "--bare", "--object-format", object_format(self.commit)]).await?;
        let alternates = git_dir.join("objects/info/alternates");
        let objects = format!("{}\n", self.repository.dir.join("objects").display());
        std::fs::write(&alternates, objects).map_err(SourceError::io("write", &alternates))?;
        let shallow = self.repository.dir.join("shallow");
        if shallow.exists() {
            let copy = git_dir.join("shallow");
            std::fs::copy(&shallow, &copy).map_err(SourceError::io("write", &copy))?;
        }
        run(&["config", "core.bare", "false"]).await?;
        // What relative submodules are relative to.
        run(&["config", "remote.origin.url", &self.git.spec.remote.url]).await?;

        let within = match self.git.spec.subdir.as_str() {
            "" => self.dir.to_owned(),
            // In the tree itself, so that the directory's files can be moved up.
            _ => {
                let made = SourceError::io("make a directory in", self.dir);
                tempfile::Builder::new().prefix(".checkout-").tempdir_in(self.dir).map_err(made)?.keep()
            }
        };
        let work = |args: &[&str]| GitCommand {
            work_tree: Some(within.clone()),
            ..GitCommand::new(args.iter().copied()).in_dir(&git_dir)
        };
        self.git.run(work(&["read-tree", self.commit])).await?;
        self.git.run(work(&["checkout-index", "--all", "--force", "--quiet"])).await?;
        self.submodules(&work(&[])).await?;
        let (subdir, dir, origin) =
            (self.git.spec.subdir.clone(), self.dir.to_owned(), self.git.spec.origin());
        SourceError::blocking(move || {
            remove_git_files(&within)?;
            if subdir.is_empty() {
                return Ok(());
            }
            lift(&within, &subdir, &dir, &origin)?;
            std::fs::remove_dir_all(&within).map_err(SourceError::io("remove", &within))
        })
        .await
    }

    /// A clone with one commit, as a person would have made it; it remembers the remote without credentials.
    async fn with_git_dir(&self) -> Result<(), SourceError> {
        let git_dir = self.dir.join(".git");
        let work = |args: &[&str]| GitCommand {
            work_tree: Some(self.dir.to_owned()),
            ..GitCommand::new(args.iter().copied()).in_dir(&git_dir)
        };
        let run = |args: &[&str]| self.git.run(work(args));
        run(&["init", "--quiet", "--object-format", object_format(self.commit)]).await?;
        // By the protocol, not by copying files: what is in a repository cannot make git take other files along.
        let from = format!("file://{}", self.repository.dir.display());
        let (object, reference) = (&self.pinned.object, &self.pinned.reference);
        let kept = format!("refs/lapstrake/{object}");
        self.git
            .run(GitCommand::new(["update-ref", "--no-deref", &kept, object]).in_dir(&self.repository.dir))
            .await?;
        let named = if is_commit(reference) { String::new() } else { format!(":{reference}") };
        let fetch =
            ["fetch", "--quiet", "-u", "--depth=1", "--no-tags", "--", &from, &format!("+{kept}{named}")];
        let command = GitCommand { from_here: true, ssh: GitSsh::default(), ..work(&fetch) };
        // Without the remote's credentials.
        let fetched = self.git.program.run(command).await;
        fetched.map_err(|failure| self.git.failed("fetch", &failure))?;
        run(&["checkout", "--quiet", "--force", "--detach", self.commit]).await?;
        run(&["remote", "add", "origin", &self.git.spec.remote.url]).await?;
        self.submodules(&work(&[])).await?;
        run(&["reflog", "expire", "--all", "--expire=now"]).await?;
        let head = git_dir.join("FETCH_HEAD");
        match std::fs::remove_file(&head) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(SourceError::io("remove", &head)(error))
            }
            _ => Ok(()),
        }
    }

    async fn submodules(&self, place: &GitCommand) -> Result<(), SourceError> {
        let modules = place.work_tree.as_deref().unwrap_or(self.dir).join(".gitmodules");
        if self.git.spec.skip_submodules || std::fs::symlink_metadata(&modules).is_err() {
            return Ok(());
        }
        let update = ["submodule", "update", "--init", "--recursive", "--force"];
        let command = |more: &[&str]| GitCommand {
            args: update.iter().chain(more).map(|arg| (*arg).into()).collect(),
            ..place.clone()
        };
        let updated = match self.git.tell(command(&["--depth=1"])).await {
            // An old server, or one of plain files.
            Err(super::GitFailure::Failed { output, .. })
                if ["--depth", "shallow"].iter().any(|word| output.stderr.contains(word)) =>
            {
                self.git.tell(command(&[])).await
            }
            result => result,
        };
        updated.map(drop).map_err(|failure| self.git.failed("submodule", &failure))
    }

    /// When the commit was made, in seconds since 1970.
    async fn commit_time(&self) -> Result<i64, SourceError> {
        let show = ["show", "--no-patch", "--format=%ct", "--end-of-options", self.commit];
        let shown = self.git.run(GitCommand::new(show).in_dir(&self.repository.dir)).await?.stdout;
        shown.trim().parse().map_err(|_| SourceError::Refused {
            origin: self.git.spec.origin(),
            why: format!("commit {} has no time", self.commit),
        })
    }
}

/// Moves what is in `subdir` up into `dir`. Every part of its path must be a directory of the repository: a symlink may lead anywhere
/// (CVE-2026-33748).
fn lift(checkout: &Path, subdir: &str, dir: &Path, origin: &str) -> Result<(), SourceError> {
    let opened = |path: &Path| {
        rustix::fs::openat(CWD, path, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
            .map_err(|errno| SourceError::io("open", path)(errno.into()))
    };
    let (root, to) = (opened(checkout)?, opened(dir)?);
    let from = open_beneath(root.as_fd(), Path::new(subdir), OFlags::DIRECTORY).map_err(|error| {
        let errno = error.raw_os_error().map(Errno::from_raw_os_error);
        match errno {
            Some(Errno::NOENT) => {
                SourceError::GitNotFound { origin: origin.to_owned(), what: format!("directory {subdir}") }
            }
            Some(Errno::LOOP | Errno::XDEV | Errno::NOTDIR) => SourceError::Refused {
                origin: origin.to_owned(),
                why: format!("git subpath {subdir:?} contains a non-directory"),
            },
            _ => SourceError::io("open", subdir)(error),
        }
    })?;
    for name in names(&from).map_err(SourceError::io("list", subdir))? {
        rustix::fs::renameat_with(&from, &name, &to, &name, RenameFlags::NOREPLACE)
            .map_err(|errno| SourceError::io("move", Path::new(&name))(errno.into()))?;
    }
    Ok(())
}

fn names(dir: &OwnedFd) -> io::Result<Vec<std::ffi::OsString>> {
    use std::os::unix::ffi::OsStrExt as _;
    let mut names = Vec::new();
    for entry in rustix::fs::Dir::read_from(dir)? {
        let entry = entry?;
        let name = entry.file_name().to_bytes();
        if name != b"." && name != b".." {
            names.push(OsStr::from_bytes(name).to_owned());
        }
    }
    Ok(names)
}

fn whole(dir: &Path) -> io::Result<SelectedTree> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let root = rustix::fs::openat(CWD, dir, flags, Mode::empty())?;
    Ok(SelectedTree { root, selection: Selection::default(), owner: Owner::AsIs })
}

/// Removes the `.git` files of submodules, which name a directory that is about to go.
fn remove_git_files(dir: &Path) -> Result<(), SourceError> {
    let failed = SourceError::io("clean", dir);
    let remove = || {
        let tree = whole(dir)?;
        tree.visit(&mut |seen: &Seen<'_>| {
            let regular = FileType::from_raw_mode(seen.stat.st_mode) == FileType::RegularFile;
            if regular && seen.name == OsStr::new(".git") {
                rustix::fs::unlinkat(seen.dir, seen.name, AtFlags::empty())?;
            }
            Ok::<(), io::Error>(())
        })
    };
    remove().map_err(failed)
}

/// Sets times, where they are asked for, and commits.
fn settle(draft: Draft, dir: &Path, time: Option<i64>) -> Result<Tree, SourceError> {
    if let Some(seconds) = time {
        set_times(dir, seconds).map_err(SourceError::io("set times in", dir))?;
    }
    Ok(draft.commit()?)
}

fn set_times(dir: &Path, seconds: i64) -> io::Result<()> {
    let time = Timespec { tv_sec: seconds, tv_nsec: 0 };
    let times = Timestamps { last_access: time, last_modification: time };
    let set = |dir: BorrowedFd<'_>, name: &OsStr| {
        rustix::fs::utimensat(dir, name, &times, AtFlags::SYMLINK_NOFOLLOW)
    };
    let tree = whole(dir)?;
    tree.visit(&mut |seen: &Seen<'_>| Ok::<(), io::Error>(set(seen.dir, seen.name)?))?;
    Ok(set(tree.root.as_fd(), OsStr::new("."))?)
}
