//! A tar stream as entries. Understands what Go's `archive/tar` and GNU tar write: V7, ustar, star, GNU, PAX, sparse.

use std::io::{self, Read};

use super::{
    BLOCK, Entry, Kind, Time, Xattrs,
    pax::{self, Records},
    sparse::{self, PaxSparse, Segment},
};
use crate::{DiffError, EntryName, Limits, compression::DecoderError};

/// Reads entries one after the other; each one's content is read with [`TarReader::read_content`] before the next.
pub(crate) struct TarReader<R> {
    inner: R,
    limits: Limits,
    last: EntryName,
    /// Bytes of the current entry's content not read yet.
    content_left: u64,
    /// Bytes between the content's end and the next header.
    padding: u64,
    entries: u64,
    content: u64,
    stream: u64,
    /// Whether a mode had bits of the file's type.
    typed_modes: bool,
}

/// Extended headers that came before an entry.
#[derive(Default)]
struct Extended {
    pax: Records,
    long_name: Option<Vec<u8>>,
    long_link: Option<Vec<u8>>,
}

impl<R: Read> TarReader<R> {
    pub(crate) fn new(inner: R, limits: &Limits) -> Self {
        let last = EntryName::new(b"");
        Self {
            inner,
            limits: *limits,
            last,
            content_left: 0,
            padding: 0,
            entries: 0,
            content: 0,
            stream: 0,
            typed_modes: false,
        }
    }

    /// Entries so far.
    pub(crate) fn entries(&self) -> u64 {
        self.entries
    }

    /// Bytes of file content so far, holes included.
    pub(crate) fn content(&self) -> u64 {
        self.content
    }

    /// Whether all modes so far were permissions alone. Docker's clients put the file's type above them, as writers did before POSIX.
    pub(crate) fn bare_modes(&self) -> bool {
        !self.typed_modes
    }

    /// The next entry, or `None` after the last. Content that was not read is skipped.
    ///
    /// Two zero blocks end the archive; so does the end of the stream between entries, as for Go and GNU tar. The last entry's padding may be
    /// missing with them: that is how docker 20.10 sends a context with a Dockerfile from standard input.
    pub(crate) fn next_entry(&mut self) -> Result<Option<Entry>, DiffError> {
        let mut extended = Extended::default();
        loop {
            self.skip(self.content_left)?;
            self.content_left = 0;
            if !self.skip_padding()? {
                return Ok(None);
            }
            let Some(block) = self.read_header()? else {
                return Ok(None);
            };
            let header = Header(&block);
            let size = header.number(124..136).map_err(|why| self.bad(why))?;
            match header.0[156] {
                b'x' => {
                    extended.pax = Records::parse(&self.read_extended(size)?).map_err(|why| self.bad(why))?
                }
                b'L' => extended.long_name = Some(until_zero(&self.read_extended(size)?).to_vec()),
                b'K' => extended.long_link = Some(until_zero(&self.read_extended(size)?).to_vec()),
                // A global header speaks of all later entries; Docker ignores it, and so does everybody's layer.
                b'g' => {
                    self.read_extended(size)?;
                }
                _ => return self.entry(&header, size, extended).map(Some),
            }
        }
    }

    /// Reads some of the current entry's bytes (of a sparse file: of its segments, one after the other).
    pub(crate) fn read_content(&mut self, buf: &mut [u8]) -> Result<usize, DiffError> {
        let want = buf.len().min(usize::try_from(self.content_left).unwrap_or(usize::MAX));
        if want == 0 {
            return Ok(0);
        }
        let count = self.read_some(&mut buf[..want])?;
        if count == 0 {
            return Err(self.truncated());
        }
        self.content_left -= count as u64;
        Ok(count)
    }

    /// The stream below. Nothing is read ahead of it.
    pub(crate) fn source(&mut self) -> &mut R {
        &mut self.inner
    }

    /// The stream below, at what follows the archive.
    pub(crate) fn into_source(self) -> R {
        self.inner
    }

    /// Reads what follows the archive to the end of the stream, which belongs to the digest.
    pub(crate) fn drain(mut self) -> Result<R, DiffError> {
        let mut buf = vec![0; 64 << 10];
        while self.read_some(&mut buf)? > 0 {}
        Ok(self.inner)
    }

    fn entry(&mut self, header: &Header<'_>, stored: u64, extended: Extended) -> Result<Entry, DiffError> {
        let pax = &extended.pax;
        let name = match (&extended.long_name, pax.get("GNU.sparse.name"), pax.get("path")) {
            (Some(name), ..) => name.clone(),
            (None, Some(name), _) | (None, None, Some(name)) => name.to_vec(),
            (None, None, None) => header.name(),
        };
        self.last = EntryName::new(&name);
        self.entries += 1;
        self.limit("entries", self.entries, self.limits.entries)?;
        let link = match (&extended.long_link, pax.get("linkpath")) {
            (Some(link), _) => link.clone(),
            (None, Some(link)) => link.to_vec(),
            (None, None) => until_zero(&header.0[157..257]).to_vec(),
        };
        self.limit("bytes of name", name.len() as u64, self.limits.name as u64)?;
        self.limit("bytes of link target", link.len() as u64, self.limits.name as u64)?;
        let kind = self.kind(header.0[156], &name)?;
        let old_sparse = header.0[156] == b'S';

        let mut entry = Entry {
            name,
            kind,
            link,
            mode: 0,
            uid: 0,
            gid: 0,
            size: 0,
            mtime: Time::default(),
            atime: None,
            device: (0, 0),
            xattrs: Xattrs::new(),
            sparse: None,
        };
        let Numbers { stored, mode } =
            numbers(header, pax, stored, &mut entry).map_err(|why| self.bad_entry(why))?;
        // Masking loses nothing: above these bits some writers put the file's type again.
        self.typed_modes |= mode & 0o170_000 != 0;
        entry.mode = (mode & 0o7777) as u32;
        entry.xattrs = self.xattrs(pax)?;
        // Only files have content; of all others the size is ignored, as Go does.
        if kind == Kind::File {
            self.begin_content(header, stored, old_sparse, pax, &mut entry)?;
        }
        self.limit("bytes of a file", entry.size, self.limits.file)?;
        self.content = self.content.saturating_add(entry.size);
        self.limit("bytes of content", self.content, self.limits.content)?;
        Ok(entry)
    }

    fn begin_content(
        &mut self,
        header: &Header<'_>,
        stored: u64,
        old_sparse: bool,
        pax: &Records,
        entry: &mut Entry,
    ) -> Result<(), DiffError> {
        // Refused before it can overflow anything.
        self.limit("bytes of a file", stored, self.limits.file)?;
        self.padding = stored.wrapping_neg() % BLOCK as u64;
        entry.size = stored;
        self.content_left = stored;
        let (map, size) = if old_sparse {
            let map = self.old_sparse_map(header)?;
            (map, header.number(483..495).map_err(|why| self.bad_entry(why))?)
        } else {
            match sparse::from_pax(pax).map_err(|why| self.bad_entry(why))? {
                None => return Ok(()),
                Some(PaxSparse::Map { map, size }) => (map, size),
                Some(PaxSparse::InContent { size }) => (self.sparse_map_in_content()?, size),
            }
        };
        sparse::check(&map, size, self.content_left).map_err(|why| self.bad_entry(why))?;
        entry.size = size;
        entry.sparse = Some(map);
        Ok(())
    }

    /// The map in an old GNU header and the blocks that continue it.
    fn old_sparse_map(&mut self, header: &Header<'_>) -> Result<Vec<Segment>, DiffError> {
        let mut map = Vec::new();
        let mut more = read_old_segments(&header.0[386..482], &mut map).map_err(|why| self.bad_entry(why))?
            && header.0[482] != 0;
        let mut block = [0; BLOCK];
        while more {
            self.limit("sparse map", (map.len() * 24) as u64, self.limits.extended_header as u64)?;
            self.read_all(&mut block)?;
            more = read_old_segments(&block[..504], &mut map).map_err(|why| self.bad_entry(why))?
                && block[504] != 0;
        }
        Ok(map)
    }

    /// The map at the beginning of a version 1.0 sparse file's content: decimal lines, padded to a block.
    fn sparse_map_in_content(&mut self) -> Result<Vec<Segment>, DiffError> {
        let mut numbers: Vec<u64> = Vec::new();
        let mut count: Option<u64> = None;
        let mut line = Vec::new();
        let mut read = 0;
        loop {
            let mut block = [0; BLOCK];
            self.read_all(&mut block)?;
            self.content_left = self
                .content_left
                .checked_sub(BLOCK as u64)
                .ok_or_else(|| self.bad_entry("malformed sparse map"))?;
            read += BLOCK;
            self.limit("sparse map", read as u64, self.limits.extended_header as u64)?;
            for byte in block {
                if byte != b'\n' {
                    line.push(byte);
                    continue;
                }
                let number =
                    pax::parse_decimal(&line).ok_or_else(|| self.bad_entry("malformed sparse map"))?;
                line.clear();
                match count {
                    None => count = Some(number),
                    Some(_) => numbers.push(number),
                }
                if count.and_then(|count| count.checked_mul(2)) == Some(numbers.len() as u64) {
                    return sparse::pairs(&numbers).map_err(|why| self.bad_entry(why));
                }
            }
        }
    }

    fn xattrs(&self, pax: &Records) -> Result<Xattrs, DiffError> {
        const PREFIX: &[u8] = b"SCHILY.xattr.";
        let mut xattrs = Vec::new();
        for (key, value) in &pax.values {
            if let Some(name) = key.strip_prefix(PREFIX) {
                self.limit("bytes of extended attribute", value.len() as u64, self.limits.xattr as u64)?;
                xattrs.push((name.to_vec(), value.clone()));
            }
        }
        Ok(xattrs)
    }

    fn kind(&self, flag: u8, name: &[u8]) -> Result<Kind, DiffError> {
        Ok(match flag {
            // V7 had no flag for directories.
            0 if name.ends_with(b"/") => Kind::Directory,
            0 | b'0' | b'7' | b'S' => Kind::File,
            b'1' => Kind::HardLink,
            b'2' => Kind::Symlink,
            b'3' => Kind::CharDevice,
            b'4' => Kind::BlockDevice,
            b'5' => Kind::Directory,
            b'6' => Kind::Fifo,
            _ => return Err(self.bad_entry("unknown type of tar entry")),
        })
    }

    /// Reads one header block; `None` at the end of the archive.
    fn read_header(&mut self) -> Result<Option<[u8; BLOCK]>, DiffError> {
        let mut block = [0; BLOCK];
        let mut filled = 0;
        while filled < BLOCK {
            match self.read_some(&mut block[filled..])? {
                0 if filled == 0 => return Ok(None),
                0 => return Err(self.truncated()),
                count => filled += count,
            }
        }
        if block == [0; BLOCK] {
            let mut second = [1; BLOCK];
            self.read_all(&mut second)?;
            if second != [0; BLOCK] {
                return Err(self.bad("a single zero block"));
            }
            return Ok(None);
        }
        if !Header(&block).checksum_is_right() {
            return Err(self.bad("no tar header"));
        }
        Ok(Some(block))
    }

    fn read_extended(&mut self, size: u64) -> Result<Vec<u8>, DiffError> {
        self.limit("bytes of extended header", size, self.limits.extended_header as u64)?;
        let mut bytes = vec![0; usize::try_from(size).map_err(|_| self.bad("extended header too large"))?];
        self.read_all(&mut bytes)?;
        self.padding = size.wrapping_neg() % BLOCK as u64;
        Ok(bytes)
    }

    fn skip(&mut self, mut count: u64) -> Result<(), DiffError> {
        let mut buf = [0; 8192];
        while count > 0 {
            let want = buf.len().min(usize::try_from(count).unwrap_or(usize::MAX));
            match self.read_some(&mut buf[..want])? {
                0 => return Err(self.truncated()),
                read => count -= read as u64,
            }
        }
        Ok(())
    }

    /// Skips what fills the last block of an entry; `false` when the stream ends before it.
    fn skip_padding(&mut self) -> Result<bool, DiffError> {
        let padding = std::mem::take(&mut self.padding);
        let mut buf = [0; BLOCK];
        let want = usize::try_from(padding).expect("less than a block");
        match self.read_some(&mut buf[..want])? {
            0 if want > 0 => Ok(false),
            read => self.skip(padding - read as u64).map(|()| true),
        }
    }

    fn read_all(&mut self, mut buf: &mut [u8]) -> Result<(), DiffError> {
        while !buf.is_empty() {
            match self.read_some(buf)? {
                0 => return Err(self.truncated()),
                count => buf = &mut buf[count..],
            }
        }
        Ok(())
    }

    fn read_some(&mut self, buf: &mut [u8]) -> Result<usize, DiffError> {
        loop {
            match self.inner.read(buf) {
                Ok(count) => {
                    self.stream += count as u64;
                    self.limit("bytes of stream", self.stream, self.limits.stream)?;
                    return Ok(count);
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(DecoderError::into_diff_error(error)),
            }
        }
    }

    fn limit(&self, what: &'static str, is: u64, limit: u64) -> Result<(), DiffError> {
        if is > limit {
            return Err(DiffError::OverLimit { entry: self.last.clone(), what, limit });
        }
        Ok(())
    }

    fn truncated(&self) -> DiffError {
        DiffError::Truncated { entry: self.last.clone() }
    }

    fn bad(&self, why: &'static str) -> DiffError {
        DiffError::BadHeader { after: self.last.clone(), why }
    }

    fn bad_entry(&self, why: &'static str) -> DiffError {
        DiffError::BadEntry { entry: self.last.clone(), why }
    }
}

/// What a header and its records say in numbers and an [`Entry`] has no place for as it is.
struct Numbers {
    /// Bytes of content in the archive.
    stored: u64,
    /// All bits of the mode.
    mode: u64,
}

/// Reads owner, times and device into `entry`. Records count more than the header, which says that `stored` bytes follow.
fn numbers(
    header: &Header<'_>,
    pax: &Records,
    stored: u64,
    entry: &mut Entry,
) -> Result<Numbers, &'static str> {
    let number = |key: &str, field: std::ops::Range<usize>| match pax.get(key) {
        Some(value) => pax::parse_decimal(value).ok_or("malformed number in PAX record"),
        None => header.number(field),
    };
    let id = |key: &str, field| {
        number(key, field).and_then(|id| u32::try_from(id).map_err(|_| "owner out of range"))
    };
    let time =
        |key: &str| pax.get(key).map(|value| pax::parse_time(value).ok_or("malformed time in PAX record"));
    let stored = match pax.get("size") {
        Some(value) => pax::parse_decimal(value).ok_or("malformed size in PAX record")?,
        None => stored,
    };
    entry.mtime = match time("mtime").transpose()? {
        Some(time) => time,
        None => Time { seconds: header.signed(136..148)?, nanos: 0 },
    };
    if matches!(entry.kind, Kind::CharDevice | Kind::BlockDevice) && header.has_ustar_fields() {
        let part = |field| {
            header.number(field).and_then(|part| u32::try_from(part).map_err(|_| "device out of range"))
        };
        entry.device = (part(329..337)?, part(337..345)?);
    }
    let mode = header.number(100..108)?;
    entry.atime = time("atime").transpose()?;
    (entry.uid, entry.gid) = (id("uid", 108..116)?, id("gid", 116..124)?);
    Ok(Numbers { stored, mode })
}

/// Reads segments of an old GNU map until an empty one; whether all were used, so that more may follow.
fn read_old_segments(bytes: &[u8], map: &mut Vec<Segment>) -> Result<bool, &'static str> {
    for chunk in bytes.as_chunks::<24>().0 {
        if chunk[0] == 0 {
            return Ok(false);
        }
        map.push(Segment { offset: number(&chunk[..12])?, length: number(&chunk[12..])? });
    }
    Ok(true)
}

fn until_zero(bytes: &[u8]) -> &[u8] {
    bytes.split(|byte| *byte == 0).next().unwrap_or_default()
}

/// One header block. Offsets are those of `struct posix_header` in GNU tar's tar.h.
struct Header<'a>(&'a [u8; BLOCK]);

impl Header<'_> {
    fn number(&self, field: std::ops::Range<usize>) -> Result<u64, &'static str> {
        number(&self.0[field])
    }

    fn signed(&self, field: std::ops::Range<usize>) -> Result<i64, &'static str> {
        signed_number(&self.0[field])
    }

    fn has_ustar_fields(&self) -> bool {
        &self.0[257..262] == b"ustar"
    }

    fn name(&self) -> Vec<u8> {
        let name = until_zero(&self.0[..100]);
        // GNU's magic ends in spaces, and its headers have times where ustar has a prefix; star's prefix is shorter.
        let prefix = match &self.0[257..263] {
            b"ustar\0" if &self.0[508..512] == b"tar\0" => until_zero(&self.0[345..476]),
            b"ustar\0" => until_zero(&self.0[345..500]),
            _ => b"",
        };
        if prefix.is_empty() { name.to_vec() } else { [prefix, b"/", name].concat() }
    }

    /// Sum of all bytes, the checksum's own taken as spaces; old writers summed signed bytes.
    fn checksum_is_right(&self) -> bool {
        let Ok(stored) = signed_number(&self.0[148..156]) else {
            return false;
        };
        let (mut unsigned, mut signed) = (0i64, 0i64);
        for (at, byte) in self.0.iter().enumerate() {
            let byte = if (148..156).contains(&at) { b' ' } else { *byte };
            unsigned += i64::from(byte);
            signed += i64::from(byte as i8);
        }
        stored == unsigned || stored == signed
    }
}

fn number(field: &[u8]) -> Result<u64, &'static str> {
    u64::try_from(signed_number(field)?).map_err(|_| "negative number in tar header")
}

/// An octal number in text, or a binary one when the first bit is set.
fn signed_number(field: &[u8]) -> Result<i64, &'static str> {
    const MALFORMED: &str = "malformed number in tar header";
    if field[0] & 0x80 != 0 {
        // Two's complement over all bits but the first: sign-extend from bit 6 of the first byte.
        let mut value: i128 = if field[0] & 0x40 != 0 { -1 } else { 0 };
        for (at, byte) in field.iter().enumerate() {
            let byte = if at == 0 { byte & 0x7f } else { *byte };
            let bits = if at == 0 { 7 } else { 8 };
            value = (value << bits) | i128::from(byte);
            if value > i128::from(i64::MAX) || value < i128::from(i64::MIN) {
                return Err(MALFORMED);
            }
        }
        return i64::try_from(value).map_err(|_| MALFORMED);
    }
    let text = field.trim_ascii_start();
    let text =
        text.split(|byte| *byte == 0 || *byte == b' ').find(|part| !part.is_empty()).unwrap_or_default();
    if text.is_empty() {
        return Ok(0);
    }
    let text = std::str::from_utf8(text).map_err(|_| MALFORMED)?;
    if !text.bytes().all(|byte| (b'0'..=b'7').contains(&byte)) {
        return Err(MALFORMED);
    }
    i64::from_str_radix(text, 8).map_err(|_| MALFORMED)
}
