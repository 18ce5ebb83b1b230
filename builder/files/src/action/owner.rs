//! Who owns what is made. Facts: BuildKit's `readUser`; `passwd(5)`, `group(5)`.

use std::{
    fs::File,
    io::{BufRead as _, BufReader, Read as _},
    os::fd::BorrowedFd,
    path::Path,
};

use lapstrake_builder_llb::pb::{self, user_opt::User};
use rustix::{
    fs::{FileType, OFlags},
    io::Errno,
};

use crate::{
    FilesError, UnknownOwner,
    at::{self, Last},
};

/// Larger files of users or groups are refused, as by BuildKit.
const LIMIT: u64 = 10 << 20;

/// A user and group by number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Owner {
    pub(crate) uid: u32,
    pub(crate) gid: u32,
}

/// Calls its second argument with the root of the tree that an index means.
type Reading<'a> = &'a mut dyn FnMut(BorrowedFd<'_>) -> Result<(), FilesError>;

impl Owner {
    /// Looks up an owner; names in the trees that `with_tree` opens. A name that is not found, also because there is no file, is
    /// what `unknown` says. A user without a group brings its own: that of its name, or the one of the same number.
    pub(super) fn look_up(
        wanted: &pb::ChownOpt,
        unknown: UnknownOwner,
        with_tree: impl Fn(i64, Reading<'_>) -> Result<(), FilesError>,
    ) -> Result<Self, FilesError> {
        let mut owner = Self::default();
        let not_found = |kind, id, name: &str| match unknown {
            UnknownOwner::IsRoot => Ok(()),
            UnknownOwner::IsAnError => Err(FilesError::UnknownOwner { kind, id, name: name.to_owned() }),
        };
        match wanted.user.as_ref().and_then(|user| user.user.as_ref()) {
            Some(User::ById(id)) => owner = Self { uid: *id, gid: *id },
            Some(User::ByName(name)) => with_tree(name.input, &mut |root| {
                match find(root, "/etc/passwd", &name.name)? {
                    Some(fields) => owner = Self { uid: number(&fields, 2), gid: number(&fields, 3) },
                    None => not_found("user", "uid", &name.name)?,
                }
                Ok(())
            })?,
            None => {}
        }
        match wanted.group.as_ref().and_then(|group| group.user.as_ref()) {
            Some(User::ById(id)) => owner.gid = *id,
            Some(User::ByName(name)) => with_tree(name.input, &mut |root| {
                match find(root, "/etc/group", &name.name)? {
                    Some(fields) => owner.gid = number(&fields, 2),
                    None => not_found("group", "gid", &name.name)?,
                }
                Ok(())
            })?,
            None => {}
        }
        Ok(owner)
    }
}

/// A number in a line; what is none is 0, as in BuildKit.
fn number(fields: &[String], index: usize) -> u32 {
    fields.get(index).and_then(|field| field.parse().ok()).unwrap_or(0)
}

/// The first line that begins with a name.
fn find(root: BorrowedFd<'_>, path: &str, name: &str) -> Result<Option<Vec<String>>, FilesError> {
    let resolved = match at::resolve(root, path.as_ref(), Last::Follow) {
        Err(FilesError::Io { source, .. }) if source.kind() == std::io::ErrorKind::NotADirectory => {
            return Ok(None);
        }
        resolved => resolved?,
    };
    let file = match at::open(root, &resolved, at::READ & !OFlags::NOFOLLOW) {
        Err(Errno::NOENT | Errno::NOTDIR) => return Ok(None),
        file => File::from(file.map_err(FilesError::io("open", &resolved))?),
    };
    let stat = rustix::fs::fstat(&file).map_err(FilesError::io("stat", &resolved))?;
    if at::kind(&stat) != FileType::RegularFile {
        return Err(FilesError::Unsupported { path: resolved, why: "is not a regular file" });
    }
    let mut reader = BufReader::new(file.take(LIMIT + 1));
    let (mut line, mut read) = (Vec::new(), 0u64);
    loop {
        line.clear();
        let length = reader.read_until(b'\n', &mut line).map_err(FilesError::io("read", Path::new(path)))?;
        read += length as u64;
        if read > LIMIT {
            return Err(FilesError::TooLarge { path: path.to_owned(), limit: LIMIT });
        }
        if length == 0 {
            return Ok(None);
        }
        let text = String::from_utf8_lossy(line.trim_ascii());
        if text.split(':').next() == Some(name) && !text.is_empty() {
            return Ok(Some(text.split(':').map(str::to_owned).collect()));
        }
    }
}
