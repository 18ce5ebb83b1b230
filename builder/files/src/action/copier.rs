//! Copying one file or directory into a tree. Facts: `github.com/tonistiigi/fsutil/copy`.
//!
//! ```text
//!   Copier: walks directories, and makes those of the target ──each entry in them──► Entries (entry): makes it
//! ```
//!
//! Directories are walked with a stack of open ones, source and target side by side; each entry is named relative to them
//! and never followed. Owner, mode and times of a directory are set when all is in it.
//!
//! Making files through an overlay takes twice as long as making them in its upper directory. What a directory that was just
//! made through the overlay will hold is nowhere below it, so that it can be written to the upper directory as it is. The
//! overlay may not be used to look at it then: it is opened anew for what comes later.
//!
//! Files that would be copied as they are become links to what is copied from, where that is on the same file system ([`lender`]).

mod entry;
mod lender;

use std::{
    ffi::{OsStr, OsString},
    os::fd::{AsFd as _, BorrowedFd, OwnedFd},
    path::{Path, PathBuf},
};

use entry::{Entries, Entry};
use lapstrake_builder_dockerfile::ignore::{ParentMatch, PatternMatcher};
pub(crate) use lender::{Lender, Lent};
use rustix::{
    fs::{Mode, Stat, Timespec, Timestamps},
    io::Errno,
};

use super::{
    content::Copying,
    mode::ModeChange,
    owner::Owner,
    single::{both_times, open_parent},
};
use crate::{
    FilesError,
    at::{self, Node},
};

/// What modes copies get.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Modes {
    /// Those of what is copied.
    Keep,
    /// These.
    Set(u32),
    /// Changed ones.
    Change(ModeChange),
}

/// How copies differ from what is copied.
pub(super) struct Options {
    pub(super) owner: Option<Owner>,
    pub(super) time: Option<Timespec>,
    pub(super) modes: Modes,
    pub(super) include: Option<PatternMatcher>,
    pub(super) exclude: Option<PatternMatcher>,
    /// Whether what is in the way is removed even where a directory stands for a file or the other way round.
    pub(super) replace: bool,
    /// Whether sockets, which no layer can have, are left out.
    pub(super) without_sockets: bool,
}

impl Options {
    fn mode(&self, stat: &Stat) -> u32 {
        match &self.modes {
            Modes::Keep => stat.st_mode & 0o7777,
            Modes::Set(mode) => mode & 0o7777,
            Modes::Change(change) => change.apply(stat.st_mode),
        }
    }

    fn owner(&self, stat: &Stat) -> Owner {
        self.owner.unwrap_or(Owner { uid: stat.st_uid, gid: stat.st_gid })
    }

    fn times(&self, stat: &Stat) -> Timestamps {
        self.time.map_or_else(|| at::times(stat), both_times)
    }

    /// Whether a copy of the file has all that the file has.
    fn keep_all_of(&self, stat: &Stat) -> bool {
        self.mode(stat) == stat.st_mode & 0o7777
            && self.owner(stat) == Owner { uid: stat.st_uid, gid: stat.st_gid }
            && self.times(stat).last_modification == at::times(stat).last_modification
    }
}

/// What a directory is given when it is left.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Finish {
    All,
    Times,
    Nothing,
}

/// Where copies go.
pub(super) struct Target<'a, 'l> {
    /// The tree.
    pub(super) root: BorrowedFd<'a>,
    /// The directory that an overlay's changes are in, if they may be put there.
    pub(super) upper: Option<BorrowedFd<'a>>,
    /// Whose files may be linked to: what is copied from. Not for an overlay whose upper directory may not be written to.
    pub(super) lender: Option<&'a mut Lender<'l>>,
}

/// A directory that is copied to.
struct Opened {
    directory: OwnedFd,
    /// Whether it was made for that.
    made: bool,
    /// Whether it is open in the upper directory.
    direct: bool,
}

/// A directory that is being copied.
struct Frame {
    source: OwnedFd,
    stat: Stat,
    /// Its name in the target's parent.
    name: OsString,
    /// `None` as long as nothing in it is included.
    target: Option<OwnedFd>,
    /// Whether the target is in the upper directory.
    direct: bool,
    finish: Finish,
    names: std::vec::IntoIter<OsString>,
    include: Option<ParentMatch>,
    exclude: Option<ParentMatch>,
}

/// What the patterns say of an entry.
struct Verdict {
    wanted: bool,
    /// Whether nothing below it can be wanted either.
    final_below: bool,
    include: Option<ParentMatch>,
    exclude: Option<ParentMatch>,
}

pub(super) struct Copier<'a, 'l> {
    options: &'a Options,
    entries: Entries<'a, 'l>,
    root: BorrowedFd<'a>,
    upper: Option<BorrowedFd<'a>>,
    frames: Vec<Frame>,
    /// The innermost directory in the tree that is copied from.
    origin: PathBuf,
    /// The entry that is worked on, below what is copied.
    relative: PathBuf,
    target: PathBuf,
}

impl<'a, 'l> Copier<'a, 'l> {
    /// Copies to a tree.
    pub(super) fn new(target: Target<'a, 'l>, options: &'a Options, copying: Copying<'a>) -> Self {
        let Target { root, upper, .. } = target;
        Self {
            options,
            entries: Entries::new(target, options, copying),
            root,
            upper,
            frames: Vec::new(),
            origin: PathBuf::new(),
            relative: PathBuf::new(),
            target: PathBuf::new(),
        }
    }

    /// Copies what is at one resolved path, of which the last component is not followed, to exactly another one, whose
    /// parent is there. `fresh`: the target is a directory that was just made. Whether something was written past the overlay.
    pub(super) fn copy(
        mut self,
        source_root: BorrowedFd<'_>,
        source: &Path,
        target: &Path,
        fresh: bool,
    ) -> Result<bool, FilesError> {
        let stat = at::lstat(source_root, source)
            .and_then(|stat| stat.ok_or(Errno::NOENT))
            .map_err(FilesError::io("lstat", source))?;
        self.target = target.to_owned();
        if !at::is_directory(&stat) {
            let (parent, name) = open_parent(source_root, source, "lstat")?;
            let (target_parent, target_name) = open_parent(self.root, target, "open")?;
            self.entries.copy(&Entry {
                source: parent.as_fd(),
                name,
                stat: &stat,
                origin: source.parent().unwrap_or(Path::new("/")),
                target: target_parent.as_fd(),
                target_name,
                direct: false,
                relative: &self.relative,
                path: &self.target,
            })?;
            return Ok(self.entries.wrote_directly);
        }
        let directory =
            at::open(source_root, source, at::READ_DIRECTORY).map_err(FilesError::io("open", source))?;
        let opened = if target == Path::new("/") {
            let directory =
                at::open(self.root, target, at::READ_DIRECTORY).map_err(FilesError::io("open", target))?;
            Opened { directory, made: false, direct: false }
        } else {
            let (parent, name) = open_parent(self.root, target, "mkdir")?;
            self.directory_target(parent.as_fd(), name, target, false, fresh)?
        };
        let finish = if opened.made { Finish::All } else { Finish::Times };
        self.origin = source.to_owned();
        self.enter(directory, stat, OsString::new(), Some(opened), finish, (None, None))?;
        self.walk()?;
        Ok(self.entries.wrote_directly)
    }

    fn walk(&mut self) -> Result<(), FilesError> {
        while let Some(frame) = self.frames.last_mut() {
            self.entries.check()?;
            let Some(name) = frame.names.next() else {
                let frame = self.frames.pop().expect("it was there");
                self.leave(&frame)?;
                if !self.frames.is_empty() {
                    self.relative.pop();
                    self.target.pop();
                    self.origin.pop();
                }
                continue;
            };
            self.relative.push(&name);
            self.target.push(&name);
            if self.child(&name)? {
                self.origin.push(&name);
            } else {
                self.relative.pop();
                self.target.pop();
            }
        }
        Ok(())
    }

    /// Copies an entry of the innermost directory; whether it was a directory that is now entered.
    fn child(&mut self, name: &OsStr) -> Result<bool, FilesError> {
        let verdict = self.judge();
        if !verdict.wanted && verdict.final_below {
            return Ok(false);
        }
        let frame = self.frames.last().expect("a child has a parent");
        let Some(stat) =
            at::stat(frame.source.as_fd(), name).map_err(FilesError::io("lstat", &self.relative))?
        else {
            return Ok(false);
        };
        if at::is_directory(&stat) {
            let source = rustix::fs::openat(&frame.source, name, at::READ_DIRECTORY, Mode::empty())
                .map_err(FilesError::io("open", &self.relative))?;
            let target = if verdict.wanted {
                self.make_parents()?;
                let frame = self.frames.pop().expect("a child has a parent");
                let parent = frame.target.as_ref().expect("parents were made");
                let path = self.target.clone();
                let opened = self.directory_target(parent.as_fd(), name, &path, frame.direct, false);
                self.frames.push(frame);
                Some(opened?)
            } else {
                None
            };
            let finish = if target.is_some() { Finish::All } else { Finish::Nothing };
            self.enter(source, stat, name.to_owned(), target, finish, (verdict.include, verdict.exclude))?;
            return Ok(true);
        }
        if verdict.wanted {
            self.make_parents()?;
            let frame = self.frames.last().expect("a child has a parent");
            self.entries.copy(&Entry {
                source: frame.source.as_fd(),
                name,
                stat: &stat,
                origin: &self.origin,
                target: frame.target.as_ref().expect("parents were made").as_fd(),
                target_name: name,
                direct: frame.direct,
                relative: &self.relative,
                path: &self.target,
            })?;
        }
        Ok(false)
    }

    fn judge(&self) -> Verdict {
        let mut verdict = Verdict { wanted: true, final_below: false, include: None, exclude: None };
        if self.options.include.is_none() && self.options.exclude.is_none() {
            return verdict;
        }
        let frame = self.frames.last().expect("a child has a parent");
        let path = self.relative.to_string_lossy();
        if let Some(include) = &self.options.include {
            let (matches, states) = include.matches_below(&path, frame.include.as_ref());
            verdict.wanted = matches;
            verdict.final_below = !matches && include.matches_nothing_below(&path);
            verdict.include = Some(states);
        }
        if let Some(exclude) = &self.options.exclude {
            let (matches, states) = exclude.matches_below(&path, frame.exclude.as_ref());
            if matches {
                verdict.wanted = false;
                verdict.final_below |= exclude.decides_everything_below(&path);
            }
            verdict.exclude = Some(states);
        }
        verdict
    }

    fn enter(
        &mut self,
        source: OwnedFd,
        stat: Stat,
        name: OsString,
        target: Option<Opened>,
        finish: Finish,
        (include, exclude): (Option<ParentMatch>, Option<ParentMatch>),
    ) -> Result<(), FilesError> {
        if self.frames.len() >= at::MAX_DEPTH {
            let why = "more directories inside of each other than can be copied";
            return Err(FilesError::Unsupported { path: self.target.clone(), why });
        }
        let names = at::names(source.as_fd()).map_err(FilesError::io("readdir", &self.target))?.into_iter();
        let direct = target.as_ref().is_some_and(|target| target.direct);
        let target = target.map(|target| target.directory);
        self.frames.push(Frame { source, stat, name, target, direct, finish, names, include, exclude });
        Ok(())
    }

    fn leave(&mut self, frame: &Frame) -> Result<(), FilesError> {
        let Some(target) = &frame.target else { return Ok(()) };
        match frame.finish {
            Finish::All => {
                self.entries.attributes(target.as_fd(), &frame.stat, &self.target)?;
                entry::xattrs(Node::Open(frame.source.as_fd()), Node::Open(target.as_fd()), &self.target)
            }
            Finish::Times => rustix::fs::futimens(target, &self.options.times(&frame.stat))
                .map_err(FilesError::io("utime", &self.target)),
            Finish::Nothing => Ok(()),
        }
    }

    /// Makes the directories around an entry that were left out so far, because nothing in them was included.
    fn make_parents(&mut self) -> Result<(), FilesError> {
        let Some(first) = self.frames.iter().position(|frame| frame.target.is_none()) else { return Ok(()) };
        for index in first..self.frames.len() {
            let above = self.target.ancestors().nth(self.frames.len() - index);
            let path = above.expect("the entry is below all frames").to_owned();
            let name = self.frames[index].name.clone();
            let parent = &self.frames[index - 1];
            let direct = parent.direct;
            let parent = parent.target.as_ref().expect("the outermost one has a target");
            let parent = parent.try_clone().map_err(FilesError::io("open", &path))?;
            let opened = self.directory_target(parent.as_fd(), &name, &path, direct, false)?;
            let frame = &mut self.frames[index];
            if !opened.made {
                let mode = at::mode(frame.stat.st_mode);
                rustix::fs::fchmod(&opened.directory, mode).map_err(FilesError::io("chmod", &path))?;
            }
            frame.finish = if opened.made { Finish::All } else { Finish::Nothing };
            frame.direct = opened.direct;
            frame.target = Some(opened.directory);
        }
        Ok(())
    }

    /// Opens the directory at `path` that another one is copied to. `direct`: its parent is open in the upper directory;
    /// `fresh`: it is there, but was made a moment ago and holds nothing.
    fn directory_target(
        &mut self,
        parent: BorrowedFd<'_>,
        name: &OsStr,
        path: &Path,
        direct: bool,
        fresh: bool,
    ) -> Result<Opened, FilesError> {
        let io = |doing| FilesError::io(doing, path);
        let mut made = true;
        match rustix::fs::mkdirat(parent, name, Mode::RWXU) {
            Err(Errno::EXIST) => {
                made = false;
                let stat = at::stat(parent, name).map_err(io("lstat"))?;
                if !stat.is_some_and(|stat| at::is_directory(&stat)) {
                    if !self.options.replace {
                        return Err(FilesError::NotADirectory { path: path.to_owned() });
                    }
                    at::remove(parent, name).map_err(io("remove"))?;
                    rustix::fs::mkdirat(parent, name, Mode::RWXU).map_err(io("mkdir"))?;
                    made = true;
                }
            }
            result => result.map_err(io("mkdir"))?,
        }
        let directory =
            rustix::fs::openat(parent, name, at::READ_DIRECTORY, Mode::empty()).map_err(io("open"))?;
        if !direct
            && (made || fresh)
            && let Some(upper) = self.upper
        {
            let upper = at::open(upper, path, at::READ_DIRECTORY).map_err(io("open"))?;
            // Overlayfs shows a new directory under its own number; anything else is not the one that was made.
            let number = |fd: &OwnedFd| rustix::fs::fstat(fd).map(|stat| stat.st_ino).map_err(io("stat"));
            if number(&upper)? == number(&directory)? {
                self.entries.wrote_directly = true;
                return Ok(Opened { directory: upper, made, direct: true });
            }
        }
        Ok(Opened { directory, made, direct })
    }
}
