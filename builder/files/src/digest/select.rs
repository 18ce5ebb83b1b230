//! Digests of what wildcards and patterns choose. Facts: `includedPaths` in BuildKit's `cache/contenthash/checksum.go`.
//!
//! Files and headers of directories count, each by its path and digest; never whole directories, of which something might
//! be excluded. The headers of the directories around a chosen entry count too.

use std::{
    ffi::{OsStr, OsString},
    io,
    os::{
        fd::{AsFd as _, BorrowedFd, OwnedFd},
        unix::ffi::OsStrExt as _,
    },
    path::{Path, PathBuf},
};

use lapstrake_builder_dockerfile::ignore::{ParentMatch, PatternMatcher};
use lapstrake_builder_llb::cache_key::Selector;
use lapstrake_layerstore_oci::Digest;
use rustix::{
    fs::{FileType, Mode, Stat},
    io::Errno,
};
use sha2::{Digest as _, Sha256};

use super::{record, scan::Scan};
use crate::{
    FilesError,
    at::{self, Last},
    glob::{self, Pattern},
    patterns::matcher,
};

pub(super) fn select(scan: &mut Scan<'_>, path: &str, selector: &Selector) -> Result<Selected, FilesError> {
    let include = matcher("includepatterns", &selector.include_patterns)?;
    let exclude = matcher("excludepatterns", &selector.exclude_patterns)?;
    let wildcard = (selector.wildcard && path != "/").then(|| glob::split(path));
    let (prefix, pattern) = match &wildcard {
        Some((prefix, wild)) if !wild.is_empty() => (prefix.as_str(), Some(Pattern::new(wild)?)),
        _ => (path, None),
    };
    let last = if pattern.is_some() { Last::Follow } else { Last::Keep };
    let chosen = Chosen {
        prefix: if prefix == "/" { "" } else { prefix },
        hash: Sha256::new(),
        by_names: (include.is_none() && exclude.is_none()).then(Sha256::new),
        count: 0,
        first: None,
        required: selector.required_paths.iter().map(|path| (path.as_str(), false)).collect(),
    };
    // Nothing is below a file either.
    let start = match at::resolve(scan.root, prefix.as_ref(), last) {
        Err(FilesError::Io { source, .. }) if source.kind() == io::ErrorKind::NotADirectory => {
            return chosen.finish(path);
        }
        start => start?,
    };
    let stat = match at::lstat(scan.root, &start) {
        Err(Errno::NOTDIR) => None,
        stat => stat.map_err(FilesError::io("lstat", &start))?,
    };
    let mut walk = Walk {
        scan,
        follow_links: selector.follow_links,
        include,
        exclude,
        pattern,
        chosen,
        stack: Vec::new(),
    };
    if let Some(stat) = stat {
        walk.run(&start, &stat, path == "/")?;
    }
    walk.chosen.finish(path)
}

/// The digest of what was chosen, now and before BuildKit 0.26.
pub(super) struct Selected {
    pub(super) digest: Digest,
    /// Only names counted then, not where they are, so it is none where there are directories: other trees have the same.
    pub(super) before_0_26: Option<Digest>,
}

impl From<Digest> for Selected {
    fn from(digest: Digest) -> Self {
        Self { before_0_26: Some(digest.clone()), digest }
    }
}

/// What was chosen so far.
struct Chosen<'a> {
    /// What is cut off from paths; empty for the root.
    prefix: &'a str,
    hash: Sha256,
    /// The same by the last parts of paths alone; none where these do not tell all.
    by_names: Option<Sha256>,
    count: usize,
    first: Option<(OsString, Digest)>,
    /// Paths that must be the beginning of a chosen one, and whether they were.
    required: Vec<(&'a str, bool)>,
}

impl Chosen<'_> {
    /// Adds a record. `path` is empty for the root.
    fn add(&mut self, path: &OsStr, digest: &Digest) {
        let bytes = path.as_bytes();
        let relative = bytes.strip_prefix(self.prefix.as_bytes()).unwrap_or(bytes);
        let mut key: Vec<u8> = relative.iter().map(|byte| if *byte == b'/' { 0 } else { *byte }).collect();
        if key.is_empty() {
            key.push(0);
        }
        self.hash.update(&key);
        self.hash.update(digest.as_str());
        if let Some(hash) = &mut self.by_names {
            if self.count > 0 {
                hash.update([0]);
            }
            hash.update(base(bytes));
            hash.update(digest.as_str());
        }
        self.count += 1;
        if self.first.is_none() {
            self.first = Some((path.to_owned(), digest.clone()));
        }
        for (required, found) in &mut self.required {
            *found |= bytes.starts_with(required.as_bytes());
        }
    }

    fn finish(self, path: &str) -> Result<Selected, FilesError> {
        if let Some((missing, _)) = self.required.iter().find(|(_, found)| !found) {
            return Err(FilesError::NotFound { tree: None, path: (*missing).to_owned() });
        }
        match self.first {
            None => Ok(Digest::sha256_of(b"").into()),
            Some((only, digest)) if self.count == 1 && base(only.as_bytes()) == base(path.as_bytes()) => {
                Ok(digest.into())
            }
            Some(_) => Ok(Selected {
                digest: record::finish(self.hash),
                before_0_26: self.by_names.map(record::finish),
            }),
        }
    }
}

/// Go's `path.Base` of a clean path.
fn base(path: &[u8]) -> &[u8] {
    match path {
        b"" => b".",
        b"/" => b"/",
        path => path.rsplit(|byte| *byte == b'/').next().unwrap_or(path),
    }
}

/// A directory that is walked.
struct Frame {
    directory: OwnedFd,
    names: std::vec::IntoIter<OsString>,
    /// Where it is in the tree.
    at: PathBuf,
    /// What it is called: by the selector's own words as far as they go, where the tree may have links.
    called: OsString,
    /// How long the part of `called` is that patterns do not see; `None` where wildcards have not matched yet.
    matched: Option<usize>,
    /// Whether its header is among the candidates, so that it goes with what is chosen below it.
    has_header: bool,
    header_added: bool,
    include: Option<ParentMatch>,
    exclude: Option<ParentMatch>,
}

struct Walk<'s, 'a, 'p> {
    scan: &'s mut Scan<'a>,
    follow_links: bool,
    include: Option<PatternMatcher>,
    exclude: Option<PatternMatcher>,
    pattern: Option<Pattern>,
    chosen: Chosen<'p>,
    stack: Vec<Frame>,
}

/// What patterns say of an entry.
struct Verdict {
    chosen: bool,
    /// Whether nothing below it can be chosen either.
    final_below: bool,
    include: Option<ParentMatch>,
    exclude: Option<ParentMatch>,
}

impl Walk<'_, '_, '_> {
    /// `from_root`: the selector is for the root, whose header then does not count.
    fn run(&mut self, start: &Path, stat: &Stat, from_root: bool) -> Result<(), FilesError> {
        let called = OsString::from(self.chosen.prefix);
        // Without wildcards the start itself is the first candidate.
        let matched = self.pattern.is_none().then_some(called.len());
        if !at::is_directory(stat) {
            let (Some(matched), Some((parent, name))) = (matched, at::split(start)) else { return Ok(()) };
            let parent =
                at::open(self.scan.root, parent, at::HANDLE).map_err(FilesError::io("open", start))?;
            return self.file(parent.as_fd(), name, stat, start, &called, matched);
        }
        let directory =
            at::open(self.scan.root, start, at::READ_DIRECTORY).map_err(FilesError::io("open", start))?;
        self.enter(directory, start.to_owned(), called, matched, !from_root)?;
        while let Some(frame) = self.stack.last_mut() {
            let Some(name) = frame.names.next() else {
                self.stack.pop();
                continue;
            };
            self.child(&name)?;
        }
        Ok(())
    }

    fn child(&mut self, name: &OsStr) -> Result<(), FilesError> {
        let depth = self.stack.len();
        let frame = self.stack.last().expect("a child has a parent");
        let path = frame.at.join(name);
        let mut called = frame.called.clone();
        called.push("/");
        called.push(name);
        let matched = match (&self.pattern, frame.matched) {
            (Some(pattern), None) if !pattern.matches(depth - 1, name) => return Ok(()),
            (Some(pattern), None) => (depth == pattern.depth()).then_some(called.len()),
            (_, matched) => matched,
        };
        let stat = at::stat(frame.directory.as_fd(), name).map_err(FilesError::io("lstat", &path))?;
        let Some(stat) = stat else { return Ok(()) };
        if at::is_directory(&stat) {
            let below = rustix::fs::openat(&frame.directory, name, at::READ_DIRECTORY, Mode::empty())
                .map_err(FilesError::io("open", &path))?;
            return self.enter(below, path, called, matched, true);
        }
        let Some(matched) = matched else { return Ok(()) };
        let parent = frame.directory.try_clone().map_err(FilesError::io("open", &path))?;
        self.file(parent.as_fd(), name, &stat, &path, &called, matched)
    }

    fn enter(
        &mut self,
        directory: OwnedFd,
        path: PathBuf,
        called: OsString,
        matched: Option<usize>,
        counts: bool,
    ) -> Result<(), FilesError> {
        if self.stack.len() >= at::MAX_DEPTH {
            return Err(FilesError::Unsupported {
                path,
                why: "more directories inside of each other than can be read",
            });
        }
        let names = at::names(directory.as_fd()).map_err(FilesError::io("readdir", &path))?.into_iter();
        let mut frame = Frame {
            directory,
            names,
            at: path,
            called,
            matched,
            has_header: false,
            header_added: false,
            include: None,
            exclude: None,
        };
        if let Some(matched) = matched.filter(|_| counts) {
            let verdict = self.judge(&frame.called, matched);
            if verdict.final_below {
                return Ok(());
            }
            frame.has_header = true;
            frame.include = verdict.include;
            frame.exclude = verdict.exclude;
            self.stack.push(frame);
            if verdict.chosen {
                self.add_headers()?;
            }
        } else {
            self.stack.push(frame);
        }
        Ok(())
    }

    fn file(
        &mut self,
        parent: BorrowedFd<'_>,
        name: &OsStr,
        stat: &Stat,
        path: &Path,
        called: &OsStr,
        matched: usize,
    ) -> Result<(), FilesError> {
        if !self.judge(called, matched).chosen {
            return Ok(());
        }
        self.add_headers()?;
        let outermost = !self.stack.iter().any(|frame| frame.has_header);
        let digest = if self.follow_links && outermost && at::kind(stat) == FileType::Symlink {
            self.scan.path(called, Last::Follow)?
        } else {
            self.scan.entry(parent, name, stat, path)?
        };
        self.chosen.add(called, &digest);
        Ok(())
    }

    /// Adds the headers of the directories around what is chosen.
    fn add_headers(&mut self) -> Result<(), FilesError> {
        for frame in self.stack.iter_mut().filter(|frame| frame.has_header && !frame.header_added) {
            let digest = self.scan.header(frame.directory.as_fd(), &frame.at)?;
            self.chosen.add(&frame.called, &digest);
            self.chosen.by_names = None;
            frame.header_added = true;
        }
        Ok(())
    }

    fn judge(&self, called: &OsStr, matched: usize) -> Verdict {
        let mut verdict = Verdict { chosen: false, final_below: false, include: None, exclude: None };
        let candidate = String::from_utf8_lossy(&called.as_bytes()[matched..]);
        let candidate = candidate.strip_prefix('/').unwrap_or(&candidate);
        let parent = self.stack.last().filter(|frame| frame.has_header);
        if let Some(include) = &self.include {
            let known = parent.and_then(|parent| parent.include.as_ref());
            let (matches, states) = include.matches_below(candidate, known);
            verdict.include = Some(states);
            if !matches {
                verdict.final_below = !candidate.is_empty() && include.matches_nothing_below(candidate);
                return verdict;
            }
        }
        if let Some(exclude) = &self.exclude {
            let known = parent.and_then(|parent| parent.exclude.as_ref());
            let (matches, states) = exclude.matches_below(candidate, known);
            verdict.exclude = Some(states);
            if matches {
                verdict.final_below = !candidate.is_empty() && exclude.decides_everything_below(candidate);
                return verdict;
            }
        }
        verdict.chosen = true;
        verdict
    }
}
