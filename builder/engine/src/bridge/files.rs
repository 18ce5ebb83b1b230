//! Files of results, for frontends to read. Every path stays in its tree: links are followed as a process would follow them that has the tree as
//! its root.

use std::{
    collections::HashMap,
    ffi::OsStr,
    fs::File,
    io::{Read, Seek, SeekFrom},
    os::{
        fd::{AsFd, BorrowedFd, OwnedFd},
        unix::ffi::OsStrExt,
    },
};

use lapstrake_api_proto::fsutil::Stat;
use lapstrake_builder_dockerfile::ignore::PatternMatcher;
use rustix::{
    fs::{FileType, Mode, OFlags, ResolveFlags},
    io::Errno,
};

/// Most bytes that one reading gives: what fits in a message of BuildKit's clients.
const MAX_FILE: u64 = 16 << 20;
/// Most entries that are looked at for one listing.
const MAX_ENTRIES: usize = 100_000;
/// Most bytes of extended attributes of one file.
const MAX_XATTRS: usize = 1 << 20;
/// How deep a listing looks for what its pattern names.
const MAX_DEPTH: usize = 64;

/// Why a file cannot be told of. In Go's words, as clients know them (and look for them).
#[derive(Debug, thiserror::Error)]
pub enum FileError {
    /// The kernel says so.
    #[error("{what} {path}: {}", words(*.errno))]
    Os {
        /// What was tried.
        what: &'static str,
        /// On what; as it was asked for.
        path: String,
        /// Why not.
        errno: Errno,
    },
    /// It has no bytes.
    #[error("{path} is not a regular file")]
    NotRegular {
        /// What.
        path: String,
    },
    /// It is too much for an answer.
    #[error("{path}: {what}; the limit is {limit}")]
    TooMuch {
        /// What.
        path: String,
        /// How it is too much.
        what: String,
        /// How much there may be.
        limit: u64,
    },
    /// What is asked for means nothing.
    #[error("{what}")]
    Invalid {
        /// What is wrong.
        what: String,
    },
}

/// The usual reasons as Go has them.
fn words(errno: Errno) -> String {
    match errno {
        Errno::NOENT => "no such file or directory".to_owned(),
        Errno::NOTDIR => "not a directory".to_owned(),
        Errno::LOOP => "too many links".to_owned(),
        other => {
            let text = std::io::Error::from(other).to_string();
            text.split(" (os error").next().unwrap_or_default().to_lowercase()
        }
    }
}

/// Which bytes of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct FileRange {
    pub(crate) offset: u64,
    pub(crate) length: u64,
}

/// The bytes of a file, or a part of them. Less where the file ends earlier.
pub(crate) fn read_file(
    root: BorrowedFd<'_>,
    path: &str,
    range: Option<FileRange>,
) -> Result<Vec<u8>, FileError> {
    let failed = |errno| FileError::Os { what: "open", path: path.to_owned(), errno };
    let found = open(root, path, OFlags::PATH).map_err(failed)?;
    let about = rustix::fs::fstat(&found).map_err(failed)?;
    // Before it is opened: a pipe has somebody at its other end, and a device does things.
    if FileType::from_raw_mode(about.st_mode) != FileType::RegularFile {
        return Err(FileError::NotRegular { path: path.to_owned() });
    }
    let mut file = File::from(open(root, path, OFlags::RDONLY | OFlags::NONBLOCK).map_err(failed)?);
    let failed = |error: std::io::Error| FileError::Os {
        what: "read",
        path: path.to_owned(),
        errno: Errno::from_io_error(&error).unwrap_or(Errno::IO),
    };
    let about = file.metadata().map_err(failed)?;
    if !about.is_file() {
        return Err(FileError::NotRegular { path: path.to_owned() });
    }
    let FileRange { offset, length } = range.unwrap_or(FileRange { offset: 0, length: u64::MAX });
    let bytes = about.len().saturating_sub(offset).min(length);
    if bytes > MAX_FILE {
        let what = format!("{bytes} bytes are asked for");
        return Err(FileError::TooMuch { path: path.to_owned(), what, limit: MAX_FILE });
    }
    file.seek(SeekFrom::Start(offset.min(about.len()))).map_err(failed)?;
    let mut data = Vec::with_capacity(usize::try_from(bytes).expect("it is below the limit"));
    file.take(bytes).read_to_end(&mut data).map_err(failed)?;
    Ok(data)
}

/// What is in a directory, by name; with a pattern, as of COPY, what it matches and the directories that have such.
pub(crate) fn read_dir(root: BorrowedFd<'_>, path: &str, pattern: &str) -> Result<Vec<Stat>, FileError> {
    let failed = |errno| FileError::Os { what: "open", path: path.to_owned(), errno };
    let dir = open(root, path, OFlags::RDONLY | OFlags::DIRECTORY).map_err(failed)?;
    let matcher = match pattern {
        "" => None,
        pattern => Some(PatternMatcher::new(&[pattern]).map_err(|error| FileError::Invalid {
            what: format!("invalid includepatterns: {pattern:?}: {error}"),
        })?),
    };
    let mut budget = MAX_ENTRIES;
    let mut stats = Vec::new();
    let mut links: HashMap<(u64, u64), String> = HashMap::new();
    for name in names(dir.as_fd(), path, &mut budget)? {
        let shown = name.to_string_lossy().into_owned();
        let entry = entry(dir.as_fd(), &name).map_err(failed)?;
        if let Some(matcher) = &matcher
            && !matcher.matches(&shown)
            && !(entry.is_dir() && has_match(dir.as_fd(), &name, &shown, matcher, path, &mut budget, 0)?)
        {
            continue;
        }
        let mut stat = entry.stat(shown);
        if entry.is_hard_linked() {
            match links.get(&entry.identity()) {
                Some(first) => {
                    stat.linkname.clone_from(first);
                    stat.size = 0;
                }
                None => _ = links.insert(entry.identity(), stat.path.clone()),
            }
        }
        stats.push(stat);
    }
    Ok(stats)
}

/// What a path leads to.
pub(crate) fn stat_file(root: BorrowedFd<'_>, path: &str) -> Result<Stat, FileError> {
    let failed = |errno| FileError::Os { what: "lstat", path: path.to_owned(), errno };
    let found = open(root, path, OFlags::PATH).map_err(failed)?;
    let name = path.trim_end_matches('/').rsplit('/').next().unwrap_or_default();
    let name = if matches!(name, "" | "." | "..") { "/" } else { name };
    Ok(Entry::of(found).map_err(failed)?.stat(name.to_owned()))
}

fn open(root: BorrowedFd<'_>, path: &str, flags: OFlags) -> Result<OwnedFd, Errno> {
    let path = if path.is_empty() { "." } else { path };
    let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
    rustix::fs::openat2(root, path, flags | OFlags::CLOEXEC, Mode::empty(), resolve)
}

/// Names in a directory, sorted.
fn names(dir: BorrowedFd<'_>, path: &str, budget: &mut usize) -> Result<Vec<std::ffi::OsString>, FileError> {
    let failed = |errno| FileError::Os { what: "readdir", path: path.to_owned(), errno };
    let mut names = Vec::new();
    for found in rustix::fs::Dir::read_from(dir).map_err(failed)? {
        let found = found.map_err(failed)?;
        let name = found.file_name().to_bytes();
        if matches!(name, b"." | b"..") {
            continue;
        }
        *budget = budget.checked_sub(1).ok_or_else(|| FileError::TooMuch {
            path: path.to_owned(),
            what: "it has more entries than are listed".to_owned(),
            limit: MAX_ENTRIES as u64,
        })?;
        names.push(OsStr::from_bytes(name).to_owned());
    }
    names.sort();
    Ok(names)
}

/// Whether something in a directory matches.
fn has_match(
    parent: BorrowedFd<'_>,
    name: &OsStr,
    shown: &str,
    matcher: &PatternMatcher,
    path: &str,
    budget: &mut usize,
    depth: usize,
) -> Result<bool, FileError> {
    if depth == MAX_DEPTH || matcher.matches_nothing_below(shown) {
        return Ok(false);
    }
    let failed = |errno| FileError::Os { what: "open", path: path.to_owned(), errno };
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let dir = rustix::fs::openat(parent, name, flags, Mode::empty()).map_err(failed)?;
    for name in names(dir.as_fd(), path, budget)? {
        let below = format!("{shown}/{}", name.to_string_lossy());
        if matcher.matches(&below) {
            return Ok(true);
        }
        let entry = entry(dir.as_fd(), &name).map_err(failed)?;
        if entry.is_dir() && has_match(dir.as_fd(), &name, &below, matcher, path, budget, depth + 1)? {
            return Ok(true);
        }
    }
    Ok(false)
}

fn entry(dir: BorrowedFd<'_>, name: &OsStr) -> Result<Entry, Errno> {
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    Entry::of(rustix::fs::openat(dir, name, flags, Mode::empty())?)
}

/// A file that is open by its path only.
struct Entry {
    file: OwnedFd,
    about: rustix::fs::Stat,
}

impl Entry {
    fn of(file: OwnedFd) -> Result<Self, Errno> {
        let about = rustix::fs::fstat(&file)?;
        Ok(Self { file, about })
    }

    fn kind(&self) -> FileType {
        FileType::from_raw_mode(self.about.st_mode)
    }

    fn is_dir(&self) -> bool {
        self.kind() == FileType::Directory
    }

    fn is_hard_linked(&self) -> bool {
        !self.is_dir() && self.about.st_nlink > 1
    }

    fn identity(&self) -> (u64, u64) {
        (self.about.st_dev, self.about.st_ino)
    }

    /// As `fsutil` has it; the mode is Go's.
    fn stat(&self, path: String) -> Stat {
        let about = &self.about;
        let kind = self.kind();
        let mut stat = Stat {
            path,
            mode: go_mode(about.st_mode, kind),
            uid: about.st_uid,
            gid: about.st_gid,
            mod_time: nanoseconds(about),
            ..Stat::default()
        };
        if kind != FileType::Directory {
            stat.size = about.st_size;
        }
        match kind {
            FileType::Symlink => {
                let target = rustix::fs::readlinkat(&self.file, "", Vec::new());
                stat.linkname = target.map(|text| text.to_string_lossy().into_owned()).unwrap_or_default();
            }
            FileType::BlockDevice | FileType::CharacterDevice => {
                stat.devmajor = rustix::fs::major(about.st_rdev).into();
                stat.devminor = rustix::fs::minor(about.st_rdev).into();
            }
            _ => {}
        }
        if kind != FileType::Symlink {
            self.read_xattrs(&mut stat);
        }
        stat
    }

    /// Those that can be read; others are nobody's loss.
    fn read_xattrs(&self, stat: &mut Stat) {
        use std::os::fd::AsRawFd;
        let path = format!("/proc/self/fd/{}", self.file.as_raw_fd());
        let Ok(names) = xattr::list_deref(&path) else { return };
        let mut room = MAX_XATTRS;
        for name in names {
            let Ok(Some(value)) = xattr::get_deref(&path, &name) else { continue };
            let Some(left) = room.checked_sub(name.len() + value.len()) else { return };
            room = left;
            // What the store itself keeps there is nobody's business.
            if let Some(name) = name.to_str().filter(|name| !is_own(name)) {
                stat.xattrs.insert(name.to_owned(), value);
            }
        }
    }
}

fn is_own(name: &str) -> bool {
    let own = ["trusted.overlay.", "user.overlay.", "trusted.lapstrake."];
    own.iter().any(|prefix| name.starts_with(prefix))
}

fn nanoseconds(about: &rustix::fs::Stat) -> i64 {
    let seconds: i64 = about.st_mtime;
    let rest = i64::try_from(about.st_mtime_nsec).unwrap_or_default();
    seconds.saturating_mul(1_000_000_000).saturating_add(rest)
}

/// Go's `os.FileMode`. That something is a socket is left out, as `fsutil` does.
fn go_mode(mode: u32, kind: FileType) -> u32 {
    let bit = |is: bool, bit: u32| if is { 1 << bit } else { 0 };
    let device = matches!(kind, FileType::BlockDevice | FileType::CharacterDevice);
    (mode & 0o777)
        | bit(kind == FileType::Directory, 31)
        | bit(kind == FileType::Symlink, 27)
        | bit(device, 26)
        | bit(kind == FileType::Fifo, 25)
        | bit(mode & 0o4000 != 0, 23)
        | bit(mode & 0o2000 != 0, 22)
        | bit(kind == FileType::CharacterDevice, 21)
        | bit(mode & 0o1000 != 0, 20)
}
