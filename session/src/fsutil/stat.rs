//! What the protocol tells of an entry, typed, and the translation from and to the wire.

use std::{
    collections::BTreeMap,
    ffi::OsStr,
    os::unix::ffi::{OsStrExt, OsStringExt},
    path::{Path, PathBuf},
};

use super::{
    path,
    wire::{self, go_mode},
};
use crate::TransferError;

/// What an entry is.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum FileKind {
    /// A directory.
    Directory,
    /// A regular file.
    Regular {
        /// Bytes.
        size: u64,
    },
    /// The same file as an earlier entry.
    HardLink {
        /// The earlier entry's path.
        target: PathBuf,
    },
    /// A symbolic link.
    Symlink {
        /// Its text, never followed.
        target: PathBuf,
    },
    /// A named pipe.
    Fifo,
    /// A character device.
    CharDevice {
        /// Major number.
        major: u32,
        /// Minor number.
        minor: u32,
    },
    /// A block device.
    BlockDevice {
        /// Major number.
        major: u32,
        /// Minor number.
        minor: u32,
    },
}

/// An entry's metadata.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct FileStat {
    /// What it is.
    pub kind: FileKind,
    /// Permission bits with set-uid, set-gid and sticky: `0o7777` at most.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Modification time, nanoseconds since 1970.
    pub mtime_ns: i64,
    /// Extended attributes.
    pub xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
}

/// An entry of a tree. Trees are listed in the order of [`Path`]'s `Ord` (component by component, bytes), a directory before what is in it.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct TreeEntry {
    /// Relative to the root, which itself is not listed.
    pub path: PathBuf,
    /// Its metadata.
    pub stat: FileStat,
}

impl TreeEntry {
    pub(crate) fn from_wire(stat: wire::Stat) -> Result<Self, TransferError> {
        let path = path::validate(stat.path)?;
        let refused = |kind| TransferError::Refused { path: path.clone(), kind };
        let kind = match stat.mode & go_mode::TYPE {
            0 if !stat.linkname.is_empty() => FileKind::HardLink { target: path::validate(stat.linkname)? },
            0 => FileKind::Regular { size: u64::try_from(stat.size).map_err(|_| refused("negative size"))? },
            go_mode::DIR => FileKind::Directory,
            go_mode::SYMLINK => FileKind::Symlink { target: link_text(stat.linkname, &path)? },
            go_mode::NAMED_PIPE => FileKind::Fifo,
            bits if bits & go_mode::DEVICE != 0 && bits & !(go_mode::DEVICE | go_mode::CHAR_DEVICE) == 0 => {
                let number = |n: i64| u32::try_from(n).map_err(|_| refused("impossible device number"));
                let (major, minor) = (number(stat.devmajor)?, number(stat.devminor)?);
                if bits & go_mode::CHAR_DEVICE != 0 {
                    FileKind::CharDevice { major, minor }
                } else {
                    FileKind::BlockDevice { major, minor }
                }
            }
            go_mode::SOCKET => return Err(refused("socket")),
            _ => return Err(refused("mode of no known kind of file")),
        };
        Ok(Self {
            stat: FileStat {
                kind,
                mode: unix_mode(stat.mode),
                uid: stat.uid,
                gid: stat.gid,
                mtime_ns: stat.mod_time,
                xattrs: wire::Stat::xattr_map(stat.xattrs),
            },
            path,
        })
    }

    pub(crate) fn to_wire(&self) -> wire::Stat {
        let bytes = |p: &Path| p.as_os_str().as_bytes().to_vec();
        let mut wire = wire::Stat {
            path: bytes(&self.path),
            mode: go_bits(self.stat.mode),
            uid: self.stat.uid,
            gid: self.stat.gid,
            mod_time: self.stat.mtime_ns,
            xattrs: self
                .stat
                .xattrs
                .iter()
                .map(|(key, value)| wire::Xattr { key: key.clone(), value: value.clone() })
                .collect(),
            ..wire::Stat::default()
        };
        match &self.stat.kind {
            FileKind::Directory => wire.mode |= go_mode::DIR,
            FileKind::Regular { size } => wire.size = i64::try_from(*size).unwrap_or(i64::MAX),
            FileKind::HardLink { target } => wire.linkname = bytes(target),
            FileKind::Symlink { target } => {
                wire.mode |= go_mode::SYMLINK;
                wire.linkname = bytes(target);
                wire.size = i64::try_from(wire.linkname.len()).unwrap_or(i64::MAX);
            }
            FileKind::Fifo => wire.mode |= go_mode::NAMED_PIPE,
            FileKind::CharDevice { major, minor } => {
                wire.mode |= go_mode::DEVICE | go_mode::CHAR_DEVICE;
                (wire.devmajor, wire.devminor) = ((*major).into(), (*minor).into());
            }
            FileKind::BlockDevice { major, minor } => {
                wire.mode |= go_mode::DEVICE;
                (wire.devmajor, wire.devminor) = ((*major).into(), (*minor).into());
            }
        }
        wire
    }
}

/// A symlink's text may be anything that the kernel takes.
fn link_text(text: Vec<u8>, path: &Path) -> Result<PathBuf, TransferError> {
    if text.is_empty() || text.contains(&0) || text.len() > path::MAX_PATH {
        return Err(TransferError::Refused {
            path: path.to_owned(),
            kind: "symlink whose text is empty, too long or holds NUL",
        });
    }
    Ok(PathBuf::from(std::ffi::OsString::from_vec(text)))
}

/// Special permission bits, Go's and Unix's.
const SPECIAL: [(u32, u32); 3] =
    [(go_mode::SETUID, 0o4000), (go_mode::SETGID, 0o2000), (go_mode::STICKY, 0o1000)];

fn unix_mode(go: u32) -> u32 {
    SPECIAL.iter().filter(|(bit, _)| go & bit != 0).fold(go & 0o777, |mode, (_, unix)| mode | unix)
}

fn go_bits(unix: u32) -> u32 {
    SPECIAL.iter().filter(|(_, bit)| unix & bit != 0).fold(unix & 0o777, |mode, (go, _)| mode | go)
}

/// A path of this crate from its bytes.
pub(crate) fn from_bytes(bytes: &[u8]) -> PathBuf {
    PathBuf::from(OsStr::from_bytes(bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wire(path: &str, mode: u32) -> wire::Stat {
        wire::Stat { path: path.into(), mode, ..wire::Stat::default() }
    }

    #[test]
    fn every_kind_survives_the_wire() {
        let kinds = [
            FileKind::Directory,
            FileKind::Regular { size: 7 },
            FileKind::HardLink { target: "a".into() },
            FileKind::Symlink { target: "/etc/../x".into() },
            FileKind::Fifo,
            FileKind::CharDevice { major: 1, minor: 3 },
            FileKind::BlockDevice { major: 8, minor: 1 },
        ];
        for kind in kinds {
            let entry = TreeEntry {
                path: "b/c".into(),
                stat: FileStat {
                    kind,
                    mode: 0o7754,
                    uid: 1,
                    gid: 2,
                    mtime_ns: -5,
                    xattrs: BTreeMap::from([(b"user.x".to_vec(), vec![0, 255])]),
                },
            };
            assert_eq!(TreeEntry::from_wire(entry.to_wire()).unwrap(), entry);
        }
    }

    #[test]
    fn names_need_not_be_utf8() {
        let mut stat = wire("", 0o644);
        stat.path = vec![b'a', 0xff];
        assert_eq!(TreeEntry::from_wire(stat).unwrap().path.as_os_str().as_bytes(), [b'a', 0xff]);
    }

    #[test]
    fn sockets_and_impossible_modes_are_refused() {
        for mode in
            [go_mode::SOCKET, go_mode::IRREGULAR, go_mode::DIR | go_mode::SYMLINK, go_mode::CHAR_DEVICE]
        {
            let error = TreeEntry::from_wire(wire("x", mode)).unwrap_err();
            assert!(matches!(error, TransferError::Refused { .. }), "{mode:x}: {error}");
        }
    }

    #[test]
    fn negative_sizes_and_empty_symlinks_are_refused() {
        let mut negative = wire("x", 0o644);
        negative.size = -1;
        assert!(TreeEntry::from_wire(negative).is_err());
        assert!(TreeEntry::from_wire(wire("x", go_mode::SYMLINK)).is_err());
    }
}
