//! Whether a file is an archive that a build context can be unpacked from.

use std::{io::Read, path::Path};

use lapstrake_layerstore_store::{Stores, Tree};
use rustix::fs::OFlags;

use crate::{SourceError, local::open_beneath};

/// How much of a file is looked at.
const HEAD: u64 = 1024;

/// Whether the file `name` of a tree is an archive. Blocks.
pub(super) fn file_is_archive(stores: &Stores, tree: &Tree, name: &str) -> Result<bool, SourceError> {
    let Some(open) = stores.open(tree)? else { return Ok(false) };
    let failed = |error| SourceError::io("read", name)(error);
    let file = open_beneath(open.root(), Path::new(name), OFlags::NONBLOCK).map_err(failed)?;
    let mut head = Vec::new();
    std::fs::File::from(file).take(HEAD).read_to_end(&mut head).map_err(failed)?;
    Ok(is_archive(&head))
}

/// Whether a file that begins like this is an archive, compressed or not: BuildKit's rule, and zstd.
fn is_archive(head: &[u8]) -> bool {
    const COMPRESSED: [&[u8]; 4] =
        [b"BZh", &[0x1f, 0x8b, 0x08], &[0xfd, b'7', b'z', b'X', b'Z', 0], &[0x28, 0xb5, 0x2f, 0xfd]];
    COMPRESSED.iter().any(|magic| head.starts_with(magic)) || is_tar(head)
}

/// Whether it begins with a tar header: one whose checksum is right (POSIX `ustar`: the sum of its bytes, with spaces for the checksum).
fn is_tar(head: &[u8]) -> bool {
    let Some(block) = head.first_chunk::<512>() else { return false };
    if block.iter().all(|byte| *byte == 0) {
        return false;
    }
    let field = block[148..156].iter().copied().skip_while(|byte| *byte == b' ');
    let digits: Vec<u8> = field.take_while(u8::is_ascii_digit).collect();
    let stored = std::str::from_utf8(&digits).ok().and_then(|text| i64::from_str_radix(text, 8).ok());
    let bytes =
        || block.iter().enumerate().map(|(at, byte)| if (148..156).contains(&at) { b' ' } else { *byte });
    let unsigned: i64 = bytes().map(i64::from).sum();
    // Some old writers summed signed characters.
    let signed: i64 = bytes().map(|byte| i64::from(byte.cast_signed())).sum();
    stored.is_some_and(|stored| stored == unsigned || stored == signed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn archives_are_known_by_their_beginning() {
        let mut tar = tar::Builder::new(Vec::new());
        let mut header = tar::Header::new_gnu();
        header.set_size(1);
        tar.append_data(&mut header, "Dockerfile", &b"x"[..]).expect("memory");
        let tar = tar.into_inner().expect("memory");
        assert!(is_archive(&tar));
        assert!(is_archive(b"\x1f\x8b\x08rest") && is_archive(b"BZh9") && is_archive(b"\xfd7zXZ\0"));
        assert!(!is_archive(b"FROM scratch\n") && !is_archive(b"") && !is_archive(&[0; 1024]));
        let mut damaged = tar;
        damaged[0] ^= 1;
        assert!(!is_archive(&damaged));
    }
}
