//! The copy action: what its paths mean. Facts: BuildKit's `docopy` and `fsutil/copy`.

use std::{
    ffi::{OsStr, OsString},
    fs::File,
    io::{Seek as _, SeekFrom},
    os::{
        fd::{AsFd as _, BorrowedFd},
        unix::ffi::OsStrExt as _,
    },
    path::{Path, PathBuf},
};

use lapstrake_builder_llb::{clean_path, pb};
use lapstrake_layerstore_diff::{ArchiveOptions, Limits, decompress, is_archive, unpack_archive};
use rustix::{
    fs::{FileType, Mode},
    io::Errno,
};
use tokio_util::sync::CancellationToken;

use super::{
    content::{Cancellable, Copying},
    copier::{Copier, Lender, Modes, Options, Target},
    mode::ModeChange,
    owner::Owner,
    single::{Attributes, both_times, make_directories, open_parent, timestamp},
};
use crate::{
    FilesError,
    at::{self, Last},
    glob::{self, Pattern},
    patterns::matcher,
};

/// The mode of directories that lead to a copy.
const DIRECTORY_MODE: u32 = 0o755;

/// Copies; whether something was written past an overlay, which must then be opened anew.
pub(super) fn copy(
    source: BorrowedFd<'_>,
    target: Target<'_, '_>,
    action: &pb::FileActionCopy,
    owner: Option<Owner>,
    cancel: &CancellationToken,
) -> Result<bool, FilesError> {
    let src = clean(&action.src);
    let dest = clean(&action.dest);
    if !action.create_dest_path {
        let path = at::resolve(target.root, OsStr::new(&dest), Last::Follow)?;
        let parent = path.parent().unwrap_or(Path::new("/"));
        at::lstat(target.root, parent)
            .and_then(|stat| stat.ok_or(Errno::NOENT))
            .map_err(FilesError::io("failed to stat", &action.dest))?;
    }
    let mode = (action.mode_str.is_empty() && action.mode != -1).then(|| action.mode.cast_unsigned());
    let options = Options {
        owner,
        time: timestamp(action.timestamp),
        modes: match mode {
            _ if !action.mode_str.is_empty() => Modes::Change(ModeChange::parse(&action.mode_str)?),
            Some(mode) => Modes::Set(mode),
            None => Modes::Keep,
        },
        include: matcher("includepatterns", &action.include_patterns)?,
        exclude: matcher("excludepatterns", &action.exclude_patterns)?,
        replace: action.always_replace_existing_dest_paths,
        without_sockets: false,
    };
    let last = if action.follow_symlink { Last::Follow } else { Last::Keep };
    let sources = if action.allow_wildcard {
        let matches = wildcards(source, &src, last, cancel)?;
        if matches.is_empty() && !action.allow_empty_wildcard {
            return Err(FilesError::NoMatch { path: src });
        }
        matches
    } else {
        vec![OsString::from(&src)]
    };
    let job = Job {
        source,
        target: target.root,
        dest: &dest,
        options: &options,
        directory_mode: mode.unwrap_or(DIRECTORY_MODE) & 0o777,
        contents: action.dir_copy_contents,
        last,
        cancel,
    };
    let Some((final_path, paths)) = sources.split_last() else { return Ok(false) };
    let is_unpacked =
        |path| Ok::<_, FilesError>(action.attempt_unpack_docker_compatibility && job.unpack(path)?);
    for path in paths {
        // What follows looks through the overlay again; and two that are one file become two files.
        if !is_unpacked(path)? {
            job.copy(path, Target { root: target.root, upper: None, lender: None })?;
        }
    }
    if is_unpacked(final_path)? { Ok(false) } else { job.copy(final_path, target) }
}

/// Puts everything that is in one tree on top of what is in another one, as a layer would be.
pub(crate) fn copy_tree(
    source: BorrowedFd<'_>,
    target: BorrowedFd<'_>,
    lender: Option<&mut Lender<'_>>,
    cancel: &CancellationToken,
) -> Result<(), FilesError> {
    let options = Options {
        owner: None,
        time: None,
        modes: Modes::Keep,
        include: None,
        exclude: None,
        replace: true,
        without_sockets: lender.is_some(),
    };
    let root = Path::new("/");
    let target = Target { root: target, upper: None, lender };
    Copier::new(target, &options, Copying::new(cancel)).copy(source, root, root, false)?;
    Ok(())
}

struct Job<'a> {
    source: BorrowedFd<'a>,
    target: BorrowedFd<'a>,
    dest: &'a str,
    options: &'a Options,
    directory_mode: u32,
    contents: bool,
    last: Last,
    cancel: &'a CancellationToken,
}

impl Job<'_> {
    fn attributes(&self) -> Attributes {
        Attributes { owner: self.options.owner, time: self.options.time }
    }

    fn copy(&self, source: &OsStr, target: Target<'_, '_>) -> Result<bool, FilesError> {
        // `/dir/` and `/dir/.` are directories that are made; of `/dir/name`, `/dir` is.
        let (before, name) = self.dest.rsplit_once('/').unwrap_or(("", self.dest));
        let parent = if name.is_empty() || name == "." { self.dest } else { before };
        let parent = at::resolve(self.target, OsStr::new(parent), Last::Follow)?;
        let mut made = make_directories(self.target, &parent, self.directory_mode, self.attributes())?;

        let mut dest = at::resolve(self.target, OsStr::new(&clean_path(self.dest)), Last::Follow)?;
        let followed = at::resolve(self.source, source, self.last)?;
        let stat = at::lstat(self.source, &followed)
            .and_then(|stat| stat.ok_or(Errno::NOENT))
            .map_err(FilesError::io("lstat", &followed))?;
        let there = at::lstat(self.target, &dest)
            .map_err(FilesError::io("failed to lstat destination path", &dest))?;
        let is_directory = at::is_directory(&stat);
        let into = match &there {
            Some(_) if is_directory => !self.contents,
            Some(there) => at::is_directory(there),
            None => false,
        };
        if into && base_name(source) != "." {
            dest.push(base_name(source));
        }
        let holder = match dest.parent() {
            Some(parent) if !(self.contents && is_directory && there.is_none()) => parent,
            _ => &dest,
        };
        made.extend(make_directories(self.target, holder, self.directory_mode, self.attributes())?);
        let copier = Copier::new(target, self.options, Copying::new(self.cancel));
        let wrote_directly = copier.copy(self.source, &followed, &dest, made.contains(&dest))?;
        self.restore_times(&made)?;
        Ok(wrote_directly)
    }

    /// What was copied into them has changed the times of directories made before.
    fn restore_times(&self, made: &[PathBuf]) -> Result<(), FilesError> {
        let Some(time) = self.options.time else { return Ok(()) };
        for path in made.iter().rev() {
            let (parent, name) = open_parent(self.target, path, "utime")?;
            at::set_times(parent.as_fd(), name, &both_times(time)).map_err(FilesError::io("utime", path))?;
        }
        Ok(())
    }

    /// Unpacks an archive; whether it was one.
    fn unpack(&self, source: &OsStr) -> Result<bool, FilesError> {
        let path = at::resolve(self.source, source, Last::Follow)?;
        match at::lstat(self.source, &path) {
            Ok(Some(stat)) if at::kind(&stat) == FileType::RegularFile => {}
            // The copy says what is wrong with it.
            _ => return Ok(false),
        }
        let mut file =
            File::from(at::open(self.source, &path, at::READ).map_err(FilesError::io("open", &path))?);
        if !is_archive(&mut file) {
            return Ok(false);
        }
        file.seek(SeekFrom::Start(0)).map_err(FilesError::io("seek", &path))?;
        let dest = at::resolve(self.target, OsStr::new(self.dest), Last::Follow)?;
        make_directories(self.target, &dest, DIRECTORY_MODE, self.attributes())?;
        let options = ArchiveOptions { owner: self.options.owner.map(|owner| (owner.uid, owner.gid)) };
        let unpacked = decompress(file).and_then(|plain| {
            let plain = Cancellable { inner: plain, cancel: self.cancel };
            unpack_archive(plain, self.target, &dest, &options, &Limits::default())
        });
        if self.cancel.is_cancelled() {
            return Err(FilesError::Canceled);
        }
        unpacked?;
        Ok(true)
    }
}

/// An absolute clean path, but with the `/` or `/.` at the end, if it has one.
fn clean(path: &str) -> String {
    let cleaned = clean_path(&format!("/{path}"));
    let slash = if cleaned == "/" { "" } else { "/" };
    if path.ends_with("/.") {
        format!("{cleaned}{slash}.")
    } else if path.ends_with('/') {
        format!("{cleaned}{slash}")
    } else {
        cleaned
    }
}

/// The last component of a path, which is `.` for `/dir/.` and empty for `/`.
fn base_name(path: &OsStr) -> &OsStr {
    let bytes = path.as_bytes();
    let end = bytes.iter().rposition(|byte| *byte != b'/').map_or(0, |last| last + 1);
    let start = bytes[..end].iter().rposition(|byte| *byte == b'/').map_or(0, |slash| slash + 1);
    OsStr::from_bytes(&bytes[start..end])
}

/// The paths that a pattern matches, in the order of a walk; what is below a match is not looked at. A path without
/// wildcards is what it matches, whether it is there or not.
pub(super) fn wildcards(
    root: BorrowedFd<'_>,
    pattern: &str,
    last: Last,
    cancel: &CancellationToken,
) -> Result<Vec<OsString>, FilesError> {
    let (plain, wild) = glob::split(pattern);
    if wild.is_empty() {
        return Ok(vec![OsString::from(plain)]);
    }
    let directory = at::resolve(root, OsStr::new(&plain), last)?;
    let stat = at::lstat(root, &directory)
        .and_then(|stat| stat.ok_or(Errno::NOENT))
        .map_err(FilesError::io("lstat", &directory))?;
    // As with BuildKit, a pattern that cannot be read matches nothing.
    let (true, Ok(pattern)) = (at::is_directory(&stat), Pattern::new(&wild)) else { return Ok(Vec::new()) };
    let mut found = Vec::new();
    let open = |path: &Path| at::open(root, path, at::READ_DIRECTORY).map_err(FilesError::io("open", path));
    let list = |directory: BorrowedFd<'_>, path: &Path| {
        at::names(directory).map(Vec::into_iter).map_err(FilesError::io("readdir", path))
    };
    let first = open(&directory)?;
    let names = list(first.as_fd(), &directory)?;
    // Never deeper than the pattern has components.
    let mut stack = vec![(first, directory, names)];
    while let Some((parent, path, names)) = stack.last_mut() {
        if cancel.is_cancelled() {
            return Err(FilesError::Canceled);
        }
        let Some(name) = names.next() else {
            stack.pop();
            continue;
        };
        let path = path.join(&name);
        let Some(stat) = at::stat(parent.as_fd(), &name).map_err(FilesError::io("lstat", &path))? else {
            continue;
        };
        let depth = stack.len();
        if !pattern.matches(depth - 1, &name) {
            continue;
        }
        if depth == pattern.depth() {
            found.push(path.into_os_string());
        } else if at::is_directory(&stat) {
            let (parent, ..) = stack.last().expect("it is being listed");
            let below = rustix::fs::openat(parent, &name, at::READ_DIRECTORY, Mode::empty())
                .map_err(FilesError::io("open", &path))?;
            let names = list(below.as_fd(), &path)?;
            stack.push((below, path, names));
        }
    }
    Ok(found)
}
