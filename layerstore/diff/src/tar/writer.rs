//! Entries as a tar stream, byte for byte as Go's `archive/tar` writes them in PAX form.

use std::io::Write;

use super::{BLOCK, Entry, Kind, pax};
use crate::{DiffError, EntryName};

/// The longest set of PAX records that Go's reader takes.
const EXTENDED_LIMIT: usize = 1 << 20;

/// Writes entries; [`TarWriter::finish`] ends the archive.
pub(crate) struct TarWriter<W> {
    out: W,
    content: u64,
}

impl<W: Write> TarWriter<W> {
    pub(crate) fn new(out: W) -> Self {
        Self { out, content: 0 }
    }

    /// Bytes of file content so far.
    pub(crate) fn content(&self) -> u64 {
        self.content
    }

    /// Writes an entry without content. Nanoseconds of its times are left out.
    pub(crate) fn entry(&mut self, entry: &Entry) -> Result<(), DiffError> {
        let mut records = Vec::new();
        let mut block = Block::new(type_flag(entry.kind));
        if needs_record(&entry.link, 100) {
            records.push((b"linkpath".to_vec(), entry.link.clone()));
        }
        for (name, field, number) in [
            ("uid", 108..116, u64::from(entry.uid)),
            ("gid", 116..124, u64::from(entry.gid)),
            ("size", 124..136, entry.size),
        ] {
            if !block.octal(field, number) {
                records.push((name.as_bytes().to_vec(), number.to_string().into_bytes()));
            }
        }
        let seconds = entry.mtime.seconds;
        if !u64::try_from(seconds).is_ok_and(|seconds| block.octal(136..148, seconds)) {
            block.octal(136..148, 0);
            records.push((b"mtime".to_vec(), seconds.to_string().into_bytes()));
        }
        for (name, value) in &entry.xattrs {
            records.push(([b"SCHILY.xattr.", name.as_slice()].concat(), value.clone()));
        }
        // Like Go, plain ustar where that is enough.
        match split_ustar(&entry.name).filter(|_| records.is_empty()) {
            Some((prefix, rest)) => {
                block.text(0..100, rest);
                block.text(345..500, prefix);
            }
            None => {
                if needs_record(&entry.name, 100) {
                    records.push((b"path".to_vec(), entry.name.clone()));
                }
                block.text(0..100, &ascii(&entry.name));
            }
        }
        if !records.is_empty() {
            self.extended(entry, records)?;
        }
        block.text(157..257, &ascii(&entry.link));
        block.octal(100..108, u64::from(entry.mode));
        let (major, minor) = entry.device;
        if !(block.octal(329..337, u64::from(major)) && block.octal(337..345, u64::from(minor))) {
            return Err(unsupported(&entry.name, "its device number is too large for tar"));
        }
        self.write(&block.finish())
    }

    /// Writes a whiteout: an empty file without owner, mode or time, as containerd does.
    pub(crate) fn whiteout(&mut self, name: &[u8]) -> Result<(), DiffError> {
        self.entry(&Entry {
            name: name.to_vec(),
            kind: Kind::File,
            link: Vec::new(),
            mode: 0,
            uid: 0,
            gid: 0,
            size: 0,
            mtime: super::Time::default(),
            atime: None,
            device: (0, 0),
            xattrs: Vec::new(),
            sparse: None,
        })
    }

    /// Writes some of the content of the file whose entry was last.
    pub(crate) fn write_content(&mut self, bytes: &[u8]) -> Result<(), DiffError> {
        self.content += bytes.len() as u64;
        self.write(bytes)
    }

    /// What it writes to. Content may be put there directly: [`TarWriter::end_content_beside`] ends that.
    pub(crate) fn out(&mut self) -> &mut W {
        &mut self.out
    }

    /// Pads a file's content, of which `size` bytes were put directly to where this writes.
    pub(crate) fn end_content_beside(&mut self, size: u64) -> Result<(), DiffError> {
        self.content += size;
        self.end_content(size)
    }

    /// Pads a file's content, of which there were `size` bytes.
    pub(crate) fn end_content(&mut self, size: u64) -> Result<(), DiffError> {
        let padding = (size.wrapping_neg() % BLOCK as u64) as usize; // below 512
        self.write(&[0; BLOCK][..padding])
    }

    /// Ends the archive.
    pub(crate) fn finish(mut self) -> Result<W, DiffError> {
        self.write(&[0; 2 * BLOCK])?;
        self.out.flush().map_err(DiffError::Write)?;
        Ok(self.out)
    }

    fn extended(&mut self, entry: &Entry, mut records: Vec<(Vec<u8>, Vec<u8>)>) -> Result<(), DiffError> {
        records.sort();
        let mut bytes = Vec::new();
        for (key, value) in &records {
            // A record's reader would end the key at the sign.
            if key.contains(&b'=') {
                return Err(unsupported(&entry.name, "an extended attribute has '=' in its name"));
            }
            pax::push_record(&mut bytes, key, value);
        }
        if bytes.len() > EXTENDED_LIMIT {
            return Err(unsupported(&entry.name, "its extended attributes are over 1 MiB"));
        }
        let mut block = Block::new(b'x');
        let mut name = extended_name(&entry.name);
        name.truncate(100);
        while name.last() == Some(&b'/') {
            name.pop();
        }
        block.text(0..100, &name);
        for field in [100..108, 108..116, 116..124, 136..148] {
            block.octal(field, 0);
        }
        block.octal(124..136, bytes.len() as u64);
        self.write(&block.finish())?;
        self.write(&bytes)?;
        self.end_content(bytes.len() as u64)
    }

    fn write(&mut self, bytes: &[u8]) -> Result<(), DiffError> {
        self.out.write_all(bytes).map_err(DiffError::Write)
    }
}

fn unsupported(name: &[u8], why: &'static str) -> DiffError {
    DiffError::Unsupported { path: EntryName::new(name), why }
}

fn type_flag(kind: Kind) -> u8 {
    match kind {
        Kind::File => b'0',
        Kind::HardLink => b'1',
        Kind::Symlink => b'2',
        Kind::CharDevice => b'3',
        Kind::BlockDevice => b'4',
        Kind::Directory => b'5',
        Kind::Fifo => b'6',
    }
}

fn needs_record(text: &[u8], field: usize) -> bool {
    text.len() > field || !text.is_ascii()
}

fn ascii(text: &[u8]) -> Vec<u8> {
    text.iter().copied().filter(u8::is_ascii).collect()
}

/// `dir/PaxHeaders.0/file`, cleaned as Go's `path.Join` does.
fn extended_name(name: &[u8]) -> Vec<u8> {
    let split = name.iter().rposition(|byte| *byte == b'/').map_or(0, |at| at + 1);
    let (directory, file) = name.split_at(split);
    let parts = directory.split(|byte| *byte == b'/').chain([b"PaxHeaders.0".as_slice(), file]);
    let joined = parts.filter(|part| !part.is_empty()).collect::<Vec<_>>().join(&b'/');
    ascii(&joined)
}

/// Splits a name at a slash so that both halves fit the fields of a ustar header.
fn split_ustar(name: &[u8]) -> Option<(&[u8], &[u8])> {
    if name.len() <= 100 || !name.is_ascii() {
        return None;
    }
    // A slash at the end does not count, nor one behind the prefix's room.
    let end = if name.len() > 156 { 156 } else { name.len() - usize::from(name.ends_with(b"/")) };
    let at = name[..end].iter().rposition(|byte| *byte == b'/')?;
    let (prefix, rest) = (&name[..at], &name[at + 1..]);
    (at > 0 && prefix.len() <= 155 && !rest.is_empty() && rest.len() <= 100).then_some((prefix, rest))
}

/// A header being filled.
struct Block([u8; BLOCK]);

impl Block {
    fn new(flag: u8) -> Self {
        let mut block = [0; BLOCK];
        block[156] = flag;
        block[257..265].copy_from_slice(b"ustar\x0000");
        let mut block = Self(block);
        if flag != b'x' {
            block.octal(329..337, 0);
            block.octal(337..345, 0);
        }
        block
    }

    fn text(&mut self, field: std::ops::Range<usize>, text: &[u8]) {
        let size = field.len();
        let field = &mut self.0[field];
        let len = text.len().min(size);
        field[..len].copy_from_slice(&text[..len]);
        // Cut at a slash, the name would be taken for a directory's; the full one is in a PAX record.
        if text.len() > size && field[size - 1] == b'/' {
            let end = field.iter().rposition(|byte| *byte != b'/').map_or(0, |at| at + 1);
            field[end] = 0;
        }
    }

    /// Writes zero-filled octal digits and a zero byte; `false`, and zeros, when the number is too large.
    fn octal(&mut self, field: std::ops::Range<usize>, number: u64) -> bool {
        let digits = field.len() - 1;
        let fits = digits * 3 >= 64 || number < 1 << (digits * 3);
        let text = format!("{:0digits$o}", if fits { number } else { 0 });
        self.0[field.clone()][..digits].copy_from_slice(text.as_bytes());
        self.0[field.end - 1] = 0;
        fits
    }

    fn finish(mut self) -> [u8; BLOCK] {
        self.0[148..156].fill(b' ');
        let sum: u64 = self.0.iter().map(|byte| u64::from(*byte)).sum();
        // Six digits, a zero byte, a space: the one field that ends so.
        self.octal(148..155, sum);
        self.0[155] = b' ';
        self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Limits, tar::Time, tar::reader::TarReader};

    fn entry(name: &str) -> Entry {
        Entry {
            name: name.as_bytes().to_vec(),
            kind: Kind::File,
            link: Vec::new(),
            mode: 0o644,
            uid: 0,
            gid: 0,
            size: 0,
            mtime: Time { seconds: 1_700_000_000, nanos: 0 },
            atime: None,
            device: (0, 0),
            xattrs: Vec::new(),
            sparse: None,
        }
    }

    fn written(entry: &Entry) -> Vec<u8> {
        let mut writer = TarWriter::new(Vec::new());
        writer.entry(entry).unwrap();
        writer.finish().unwrap()
    }

    /// What buildah 1.28 (Go's `archive/tar`) writes in these fields.
    #[test]
    fn headers_have_gos_form() {
        let plain = written(&entry("d/f"));
        assert_eq!(plain.len(), 3 * BLOCK);
        assert_eq!(
            &plain[100..157],
            b"0000644\x000000000\x000000000\x0000000000000\x0014524770400\x00007630\x00 0"
        );
        assert_eq!(&plain[257..265], b"ustar\x0000");
        assert_eq!(&plain[329..345], b"0000000\x000000000\0");

        let long = format!("{}/{}", "p".repeat(140), "n".repeat(90));
        let split = written(&entry(&long));
        assert_eq!(split.len(), 3 * BLOCK);
        assert_eq!(
            (&split[..91], &split[345..486]),
            ([&[b'n'; 90][..], b"\0"].concat().as_slice(), [&[b'p'; 140][..], b"\0"].concat().as_slice())
        );

        let unicode = written(&entry("d/ü"));
        assert_eq!(&unicode[..20], b"d/PaxHeaders.0\0\0\0\0\0\0");
        assert_eq!((unicode[156], &unicode[BLOCK..BLOCK + 14]), (b'x', "13 path=d/ü\n\0".as_bytes()));
        assert_eq!(&unicode[2 * BLOCK..2 * BLOCK + 3], b"d/\0");
    }

    #[test]
    fn what_does_not_fit_a_header_goes_into_records_and_back() {
        let mut odd = entry(&"n".repeat(300));
        odd.kind = Kind::Symlink;
        odd.link = "l".repeat(200).into_bytes();
        (odd.uid, odd.gid) = (3_000_000_000, 2_097_152);
        odd.mtime = Time { seconds: -5, nanos: 0 };
        odd.xattrs = vec![(b"user.a".to_vec(), b"\0\n=\xff".to_vec())];
        let bytes = written(&odd);
        let read = TarReader::new(bytes.as_slice(), &Limits::default()).next_entry().unwrap();
        assert_eq!(read, Some(odd));
    }

    #[test]
    fn names_of_attributes_that_records_cannot_hold_are_refused() {
        let mut odd = entry("f");
        odd.xattrs = vec![(b"user.a=b".to_vec(), b"".to_vec())];
        assert!(TarWriter::new(Vec::new()).entry(&odd).is_err());
        odd.xattrs = (0..40).map(|at| (format!("user.{at}").into_bytes(), vec![1; 60_000])).collect();
        assert!(TarWriter::new(Vec::new()).entry(&odd).is_err());
    }
}
