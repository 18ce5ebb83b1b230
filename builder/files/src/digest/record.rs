//! The digest of one file, directory header, link or device. Facts: BuildKit's `cache/contenthash/{filehash,tarsum}.go`.
//!
//! It is that of a tar header in the form that Docker's tarsum gave it (without name and time), followed by the content.

use std::{
    ffi::OsStr,
    os::fd::{AsFd as _, BorrowedFd},
    path::Path,
};

use lapstrake_layerstore_oci::Digest;
use rustix::{
    fs::{FileType, Mode, Stat},
    io::Errno,
};
use sha2::{Digest as _, Sha256};

use crate::{
    FilesError,
    at::{self, Node},
};

/// How much of a file is read at once.
const BUFFER: usize = 256 << 10;

/// The digest of a directory's own header, without what is in it.
pub(super) fn directory(directory: BorrowedFd<'_>, stat: &Stat, path: &Path) -> Result<Digest, FilesError> {
    let xattrs = at::xattrs(Node::Open(directory)).map_err(FilesError::io("listxattr", path))?;
    let mut hash = Sha256::new();
    header(&mut hash, stat, b"", &xattrs);
    Ok(finish(hash))
}

/// The digest of an entry of a directory that is no directory itself.
pub(super) fn entry(
    parent: BorrowedFd<'_>,
    name: &OsStr,
    stat: &Stat,
    path: &Path,
    buffer: &mut Vec<u8>,
) -> Result<Digest, FilesError> {
    let mut hash = Sha256::new();
    if at::kind(stat) != FileType::RegularFile {
        let link = match at::kind(stat) {
            FileType::Symlink => rustix::fs::readlinkat(parent, name, Vec::new())
                .map_err(FilesError::io("readlink", path))?
                .into_bytes(),
            _ => Vec::new(),
        };
        let xattrs = at::xattrs(Node::Entry(parent, name)).map_err(FilesError::io("listxattr", path))?;
        header(&mut hash, stat, &link, &xattrs);
        return Ok(finish(hash));
    }
    let file =
        rustix::fs::openat(parent, name, at::READ, Mode::empty()).map_err(FilesError::io("open", path))?;
    let opened = rustix::fs::fstat(&file).map_err(FilesError::io("stat", path))?;
    if at::kind(&opened) != FileType::RegularFile {
        return Err(FilesError::Unsupported {
            path: path.to_owned(),
            why: "became something else while it was read",
        });
    }
    let xattrs = at::xattrs(Node::Open(file.as_fd())).map_err(FilesError::io("listxattr", path))?;
    header(&mut hash, &opened, b"", &xattrs);
    buffer.resize(BUFFER, 0);
    loop {
        match rustix::io::read(&file, &mut *buffer) {
            Ok(0) => break,
            Ok(count) => hash.update(&buffer[..count]),
            Err(Errno::INTR) => {}
            Err(errno) => return Err(FilesError::io("read", path)(errno)),
        }
    }
    Ok(finish(hash))
}

pub(super) fn finish(hash: Sha256) -> Digest {
    Digest::from_sha256(hash.finalize().into())
}

/// BuildKit never gets to fill in the numbers of devices.
const END: &str = "unamegnamedevmajor0devminor0";

/// What the record of a regular file without extended attributes is the SHA-256 of, up to the file's content: for whoever has the content at
/// hand when there is no file yet. `mode` is its permissions, `size` bytes.
pub fn file_prefix(mode: u32, uid: u32, gid: u32, size: u64) -> String {
    format!("namemode{mode}uid{uid}gid{gid}size{size}typeflag0linkname{END}")
}

fn header(hash: &mut Sha256, stat: &Stat, link: &[u8], xattrs: &[(Vec<u8>, Vec<u8>)]) {
    let (kind, size) = match at::kind(stat) {
        FileType::Directory => ('5', 0),
        FileType::Symlink => ('2', 0),
        FileType::CharacterDevice => ('3', 0),
        FileType::BlockDevice => ('4', 0),
        FileType::Fifo => ('6', 0),
        // Sockets too count as files.
        FileType::RegularFile | FileType::Socket | FileType::Unknown => ('0', stat.st_size),
    };
    let mode = match at::kind(stat) {
        FileType::Symlink => stat.st_mode & 0o7000 | 0o777,
        _ => stat.st_mode & 0o7777,
    };
    let (uid, gid) = (stat.st_uid, stat.st_gid);
    hash.update(format!("namemode{mode}uid{uid}gid{gid}size{size}typeflag{kind}linkname"));
    hash.update(link);
    hash.update(END);
    // They come sorted by name.
    for (name, value) in xattrs {
        let counts = name == b"security.capability"
            || !(name.starts_with(b"security.") || name.starts_with(b"system."));
        if counts {
            hash.update(name);
            hash.update(value);
        }
    }
}
