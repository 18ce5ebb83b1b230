//! Paths inside a root file system whose content is not to be trusted: symbolic links are followed inside the root and
//! never lead out of it.

use std::{
    collections::VecDeque,
    ffi::{OsStr, OsString},
    os::{
        fd::{AsFd, BorrowedFd, OwnedFd},
        unix::ffi::{OsStrExt, OsStringExt},
    },
};

use rustix::{
    fs::{AtFlags, FileType, Gid, Mode, OFlags, ResolveFlags, Uid},
    io::Errno,
};

/// As the kernel's own limit, generously.
const MAX_LINKS: usize = 255;

/// Opens what `path` names, with `O_PATH` added to `flags`.
pub(super) fn open(root: BorrowedFd<'_>, path: &str, flags: OFlags) -> rustix::io::Result<OwnedFd> {
    open_as(root, path, flags | OFlags::PATH)
}

/// Opens what `path` names with just `flags`.
pub(super) fn open_as(root: BorrowedFd<'_>, path: &str, flags: OFlags) -> rustix::io::Result<OwnedFd> {
    let relative = match path.trim_start_matches('/') {
        "" => ".",
        relative => relative,
    };
    let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
    // EAGAIN: something was renamed meanwhile and the kernel could not be sure that ".." stayed inside.
    for _ in 0..100 {
        match rustix::fs::openat2(root, relative, flags | OFlags::CLOEXEC, Mode::empty(), resolve) {
            Err(Errno::AGAIN) => {}
            result => return result,
        }
    }
    Err(Errno::AGAIN)
}

/// What [`make`] makes when `path` is not there.
#[derive(Debug, Clone, Copy)]
pub(super) enum Missing {
    Directory,
    File,
}

/// What becomes of the times of a directory in which [`make_as`] makes something.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Times {
    /// What the kernel makes of them.
    Changed,
    /// They are put back.
    Kept,
}

/// Something that [`make`] has made: its path from the root, without symbolic links.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Made {
    pub(super) path: String,
    /// Whether it is what was asked for, not a directory on the way.
    pub(super) last: bool,
}

/// Opens (`O_PATH`) what `path` names, making it and the directories on the way when missing. New directories have mode
/// 0755, files 0644; all belong to `owner` if given. Dangling symbolic links are followed, and their target made, inside the root.
pub(super) fn make(
    root: BorrowedFd<'_>,
    path: &str,
    missing: Missing,
    owner: Option<(u32, u32)>,
) -> rustix::io::Result<(OwnedFd, Vec<Made>)> {
    make_as(root, path, missing, owner, Times::Changed)
}

/// [`make`], with a say in what becomes of the times of directories that were there.
pub(super) fn make_as(
    root: BorrowedFd<'_>,
    path: &str,
    missing: Missing,
    owner: Option<(u32, u32)>,
    times: Times,
) -> rustix::io::Result<(OwnedFd, Vec<Made>)> {
    match open(root, path, OFlags::empty()) {
        Ok(fd) => return Ok((fd, Vec::new())),
        Err(Errno::NOENT) => {}
        Err(errno) => return Err(errno),
    }
    let mut todo: VecDeque<OsString> = components(OsStr::new(path)).collect();
    // Directories from the root down; ".." takes one away, so it can never lead above the root.
    let mut stack: Vec<(OwnedFd, OsString)> = Vec::new();
    let mut made = Vec::new();
    let mut links = 0;
    while let Some(name) = todo.pop_front() {
        if name == ".." {
            stack.pop();
            continue;
        }
        let here = stack.last().map_or(root, |(fd, _)| fd.as_fd());
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let last = todo.is_empty();
        let fd = match rustix::fs::openat(here, &name, flags, Mode::empty()) {
            Ok(fd) => fd,
            Err(Errno::NOENT) => {
                let before = match times {
                    Times::Kept => Some(rustix::fs::fstat(here)?),
                    Times::Changed => None,
                };
                if last && matches!(missing, Missing::File) {
                    let flags =
                        OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
                    rustix::fs::openat(here, &name, flags, Mode::from_raw_mode(0o644))?;
                } else {
                    rustix::fs::mkdirat(here, &name, Mode::from_raw_mode(0o755))?;
                }
                if let Some(before) = before {
                    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
                    let here = rustix::fs::openat(here, ".", flags, Mode::empty())?;
                    rustix::fs::futimens(&here, &times_of(&before))?;
                }
                let fd = rustix::fs::openat(here, &name, flags, Mode::empty())?;
                if let Some((uid, gid)) = owner {
                    let (uid, gid) = (Uid::from_raw(uid), Gid::from_raw(gid));
                    rustix::fs::chownat(&fd, "", Some(uid), Some(gid), AtFlags::EMPTY_PATH)?;
                }
                let mut path = OsString::new();
                for part in stack.iter().map(|(_, part)| part.as_os_str()).chain([name.as_os_str()]) {
                    path.push("/");
                    path.push(part);
                }
                // Only what a String can hold is removed later; targets come from Strings, links may not.
                if let Ok(path) = path.into_string() {
                    made.push(Made { path, last });
                }
                fd
            }
            Err(errno) => return Err(errno),
        };
        match FileType::from_raw_mode(rustix::fs::fstat(&fd)?.st_mode) {
            FileType::Symlink => {
                links += 1;
                if links > MAX_LINKS {
                    return Err(Errno::LOOP);
                }
                let target = rustix::fs::readlinkat(&fd, "", Vec::new())?;
                let target = OsString::from_vec(target.into_bytes());
                if target.as_bytes().starts_with(b"/") {
                    stack.clear();
                }
                for part in components(&target).collect::<Vec<_>>().into_iter().rev() {
                    todo.push_front(part);
                }
            }
            FileType::Directory => stack.push((fd, name)),
            _ if last => return Ok((fd, made)),
            _ => return Err(Errno::NOTDIR),
        }
    }
    match stack.pop() {
        Some((fd, _)) => Ok((fd, made)),
        None => Ok((rustix::fs::openat(root, ".", OFlags::PATH | OFlags::CLOEXEC, Mode::empty())?, made)),
    }
}

fn components(path: &OsStr) -> impl Iterator<Item = OsString> + '_ {
    path.as_bytes()
        .split(|&byte| byte == b'/')
        .filter(|part| !part.is_empty() && *part != b".")
        .map(|part| OsStr::from_bytes(part).to_owned())
}

/// Removes a stub if it is still empty, and puts its parent's times back (BuildKit does so for reproducible layers).
/// Anything unexpected (gone, filled, a symbolic link on the way) leaves it alone.
pub(super) fn remove_stub(root: BorrowedFd<'_>, path: &str) -> rustix::io::Result<()> {
    let (parent, name) = path.rsplit_once('/').unwrap_or(("", path));
    let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_SYMLINKS;
    let relative = match parent.trim_start_matches('/') {
        "" => ".",
        relative => relative,
    };
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let parent = rustix::fs::openat2(root, relative, flags, Mode::empty(), resolve)?;
    let stub = rustix::fs::statat(&parent, name, AtFlags::SYMLINK_NOFOLLOW)?;
    let before = rustix::fs::fstat(&parent)?;
    match FileType::from_raw_mode(stub.st_mode) {
        // Refused by the kernel when it is not empty.
        FileType::Directory => rustix::fs::unlinkat(&parent, name, AtFlags::REMOVEDIR)?,
        FileType::RegularFile if stub.st_size == 0 => {
            rustix::fs::unlinkat(&parent, name, AtFlags::empty())?;
        }
        _ => return Ok(()),
    }
    rustix::fs::futimens(&parent, &times_of(&before))
}

fn times_of(stat: &rustix::fs::Stat) -> rustix::fs::Timestamps {
    rustix::fs::Timestamps {
        last_access: rustix::fs::Timespec { tv_sec: stat.st_atime, tv_nsec: stat.st_atime_nsec as _ },
        last_modification: rustix::fs::Timespec { tv_sec: stat.st_mtime, tv_nsec: stat.st_mtime_nsec as _ },
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{MetadataExt, symlink};

    use super::*;

    fn root() -> (tempfile::TempDir, OwnedFd) {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("root");
        std::fs::create_dir(&root).unwrap();
        (dir, std::fs::File::open(root).unwrap().into())
    }

    #[test]
    fn links_out_of_the_root_stay_inside() {
        let (dir, fd) = root();
        let root = dir.path().join("root");
        symlink("/outside", root.join("abs")).unwrap();
        symlink("../../outside", root.join("rel")).unwrap();
        make(fd.as_fd(), "/abs/a", Missing::Directory, None).unwrap();
        make(fd.as_fd(), "/rel/b", Missing::File, None).unwrap();
        make(fd.as_fd(), "/../../../outside/c", Missing::File, None).unwrap();
        assert!(root.join("outside/a").is_dir());
        assert!(root.join("outside/b").is_file());
        assert!(root.join("outside/c").is_file());
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[test]
    fn what_was_made_is_named_without_links() {
        let (dir, fd) = root();
        symlink("/real", dir.path().join("root/link")).unwrap();
        let (_, made) = make(fd.as_fd(), "//link/./x/f", Missing::File, None).unwrap();
        let made: Vec<_> = made.iter().map(|made| (made.path.as_str(), made.last)).collect();
        assert_eq!(made, [("/real", false), ("/real/x", false), ("/real/x/f", true)]);
        let (_, made) = make(fd.as_fd(), "/link/x/f", Missing::File, None).unwrap();
        assert_eq!(made, []);
    }

    #[test]
    fn a_ring_of_links_is_an_error() {
        let (dir, fd) = root();
        symlink("b", dir.path().join("root/a")).unwrap();
        symlink("a", dir.path().join("root/b")).unwrap();
        assert_eq!(make(fd.as_fd(), "/a/x", Missing::File, None).unwrap_err(), Errno::LOOP);
    }

    #[test]
    fn a_stub_goes_when_empty_and_its_parent_keeps_its_times() {
        let (dir, fd) = root();
        let root = dir.path().join("root");
        std::fs::create_dir(root.join("etc")).unwrap();
        std::fs::write(root.join("etc/hosts"), "").unwrap();
        std::fs::write(root.join("etc/kept"), "x").unwrap();
        let before = std::fs::metadata(root.join("etc")).unwrap();
        remove_stub(fd.as_fd(), "/etc/hosts").unwrap();
        remove_stub(fd.as_fd(), "/etc/kept").unwrap();
        assert!(!root.join("etc/hosts").exists());
        assert!(root.join("etc/kept").exists());
        let after = std::fs::metadata(root.join("etc")).unwrap();
        assert_eq!((before.mtime(), before.mtime_nsec()), (after.mtime(), after.mtime_nsec()));
    }

    #[test]
    fn a_stub_behind_a_link_is_left_alone() {
        let (dir, fd) = root();
        let root = dir.path().join("root");
        std::fs::create_dir(root.join("victim")).unwrap();
        std::fs::write(root.join("victim/hosts"), "").unwrap();
        symlink("/victim", root.join("etc")).unwrap();
        assert_eq!(remove_stub(fd.as_fd(), "/etc/hosts").unwrap_err(), Errno::LOOP);
        assert!(root.join("victim/hosts").exists());
    }
}
