//! Paths to follow: a client that is asked for a path by a symlink sends the link and what it leads to.

use std::{
    collections::BTreeSet,
    ffi::{OsStr, OsString},
    io,
    os::{
        fd::{AsFd, BorrowedFd},
        unix::ffi::{OsStrExt, OsStringExt},
    },
    path::Path,
};

use lapstrake_builder_dockerfile::ignore::PatternMatcher;
use lapstrake_builder_llb::{clean_path, join_path};
use rustix::{
    fs::{self, FileType, OFlags},
    io::Errno,
};

use super::{as_text, walk::open};

/// Symlinks looked at before giving up: more are no directory that somebody works in.
const MAX_STEPS: usize = 100_000;

/// The include patterns that `paths` stand for; `None` when one of them is the whole directory.
///
/// Symlinks are resolved as in a chroot of `root`, and the last name of each part may be a pattern.
pub(super) fn resolve(root: BorrowedFd<'_>, paths: &[String]) -> io::Result<Option<Vec<String>>> {
    let mut resolved: BTreeSet<String> = BTreeSet::new();
    let mut waiting: Vec<String> = paths.iter().rev().cloned().collect();
    for _ in 0..MAX_STEPS {
        let Some(path) = waiting.pop() else { return Ok(without_nested(resolved)) };
        step(root, &path, &mut resolved, &mut waiting)?;
    }
    Err(io::Error::new(io::ErrorKind::InvalidInput, "too many symlinks to follow"))
}

/// Goes along one path up to its end, or to the first symlink in it.
fn step(
    root: BorrowedFd<'_>,
    path: &str,
    resolved: &mut BTreeSet<String>,
    waiting: &mut Vec<String>,
) -> io::Result<()> {
    let path = clean_path(&format!("/{path}"));
    let mut current = String::new();
    let mut rest = path.trim_start_matches('/');
    if rest.is_empty() {
        resolved.insert(".".to_owned());
        return Ok(());
    }
    loop {
        let (name, after) = rest.split_once('/').unwrap_or((rest, ""));
        if !current.is_empty() {
            current.push('/');
        }
        current.push_str(name);
        let targets = targets(root, &current)?;
        if !targets.is_empty() {
            if resolved.insert(current) {
                waiting.extend(targets.into_iter().rev().map(|target| join_path(&[&target, after])));
            }
            return Ok(());
        }
        if after.is_empty() {
            resolved.insert(current);
            return Ok(());
        }
        rest = after;
    }
}

/// Where the symlink at `path`, or those that its last name matches as a pattern, lead; absolute in the root.
fn targets(root: BorrowedFd<'_>, path: &str) -> io::Result<Vec<String>> {
    let (dir, name) = path.rsplit_once('/').unwrap_or((".", path));
    let dir = match open(root, Path::new(dir), OFlags::DIRECTORY) {
        Ok(dir) => dir,
        Err(error) if is_absent(&error) => return Ok(Vec::new()),
        Err(error) => return Err(error),
    };
    let within = if path.contains('/') { path.rsplit_once('/').map_or("", |(dir, _)| dir) } else { "" };
    let mut found = Vec::new();
    if has_wildcards(name) {
        // As in Go, a pattern that is none matches nothing.
        let literal = if name.starts_with('!') { format!("\\{name}") } else { name.to_owned() };
        let Ok(pattern) = PatternMatcher::new(&[literal]) else { return Ok(found) };
        let mut names: Vec<OsString> = Vec::new();
        for entry in fs::Dir::read_from(&dir)? {
            let entry = entry?;
            let name = OsStr::from_bytes(entry.file_name().to_bytes());
            let may_link = matches!(entry.file_type(), FileType::Symlink | FileType::Unknown);
            if may_link && pattern.matches(&as_text(Path::new(name))) {
                names.push(name.to_owned());
            }
        }
        names.sort();
        for name in names {
            found.extend(target(dir.as_fd(), &name, within)?);
        }
    } else {
        found.extend(target(dir.as_fd(), OsStr::new(name), within)?);
    }
    Ok(found)
}

fn target(dir: BorrowedFd<'_>, name: &OsStr, within: &str) -> io::Result<Option<String>> {
    match fs::readlinkat(dir, name, Vec::new()) {
        Ok(text) => {
            let text = as_text(Path::new(&OsString::from_vec(text.into_bytes()))).into_owned();
            let from_root = if text.starts_with('/') { text } else { format!("/{within}/{text}") };
            Ok(Some(clean_path(&from_root)))
        }
        // Not a symlink, or not there.
        Err(Errno::INVAL | Errno::NOENT | Errno::NAMETOOLONG) => Ok(None),
        Err(errno) => Err(errno.into()),
    }
}

fn is_absent(error: &io::Error) -> bool {
    let errno = error.raw_os_error().map(Errno::from_raw_os_error);
    matches!(errno, Some(Errno::NOENT | Errno::NOTDIR | Errno::LOOP | Errno::NAMETOOLONG))
}

fn has_wildcards(name: &str) -> bool {
    let mut chars = name.chars();
    while let Some(c) = chars.next() {
        match c {
            '\\' => drop(chars.next()),
            '*' | '?' | '[' => return true,
            _ => {}
        }
    }
    false
}

/// Drops what is in a directory that is there itself.
fn without_nested(sorted: BTreeSet<String>) -> Option<Vec<String>> {
    let mut kept: Vec<String> = Vec::new();
    for path in sorted {
        if path == "." {
            return None;
        }
        let nested = kept
            .last()
            .is_some_and(|last| path.strip_prefix(last.as_str()).is_some_and(|rest| rest.starts_with('/')));
        if !nested {
            kept.push(path);
        }
    }
    Some(kept)
}
