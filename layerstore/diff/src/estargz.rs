//! eStargz: gzip whose files can be read one by one (containerd/stargz-snapshotter, docs/estargz.md).
//!
//! ```text
//!   member: headers … │ member: a file's first 4 MiB │ member: its next │ … │ member: stargz.index.json in a tar │ footer, 51 bytes
//! ```
//!
//! The tar stream is in it as it was; behind it comes, as a tar of its own, the table of contents. So what it decompresses to is longer than the stream, and
//! another layer.

use std::io::{self, Read, Write};

use base64::Engine as _;
use flate2::{Compression, GzBuilder, write::GzEncoder};
use lapstrake_layerstore_oci::{DiffId, Digest, DigestWriter};
use serde::{Serialize, Serializer};

use crate::{
    DiffError, EntryName, Limits,
    tar::{Entry, Kind, Time, Xattrs, reader::TarReader, writer::TarWriter},
};

/// Bytes of a file in one member, as stargz-snapshotter cuts it.
const CHUNK: u64 = 4 << 20;
/// The file with the table.
const CONTENTS: &str = "stargz.index.json";
/// Longest table: that of some million files.
const MOST_CONTENTS: usize = 1 << 30;
const BUFFER: usize = 64 << 10;

/// What was written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Estargz {
    /// Digest of the table of contents.
    pub contents: Digest,
    /// Digest of all that it decompresses to.
    pub diff_id: DiffId,
    /// The length of that in bytes.
    pub size: u64,
}

/// One file in the table, or a piece of one. Names and order are the format's.
#[derive(Serialize, Default)]
#[serde(rename_all = "camelCase")]
struct Row<'a> {
    name: &'a str,
    #[serde(rename = "type")]
    kind: &'static str,
    #[serde(skip_serializing_if = "is_zero")]
    size: u64,
    #[serde(rename = "modtime", skip_serializing_if = "String::is_empty")]
    modified: String,
    #[serde(skip_serializing_if = "str::is_empty")]
    link_name: &'a str,
    #[serde(skip_serializing_if = "is_zero")]
    mode: u64,
    #[serde(skip_serializing_if = "is_zero")]
    uid: u64,
    #[serde(skip_serializing_if = "is_zero")]
    gid: u64,
    #[serde(skip_serializing_if = "is_zero")]
    offset: u64,
    #[serde(skip_serializing_if = "is_zero")]
    dev_major: u64,
    #[serde(skip_serializing_if = "is_zero")]
    dev_minor: u64,
    #[serde(skip_serializing_if = "<[_]>::is_empty", serialize_with = "attributes")]
    xattrs: &'a [(Vec<u8>, Vec<u8>)],
    #[serde(skip_serializing_if = "str::is_empty")]
    digest: String,
    #[serde(skip_serializing_if = "is_zero")]
    chunk_offset: u64,
    #[serde(skip_serializing_if = "is_zero")]
    chunk_size: u64,
    #[serde(skip_serializing_if = "str::is_empty")]
    chunk_digest: String,
}

#[allow(clippy::trivially_copy_pass_by_ref, reason = "serde's signature")]
fn is_zero(number: &u64) -> bool {
    *number == 0
}

fn attributes<S: Serializer>(xattrs: &&[(Vec<u8>, Vec<u8>)], out: S) -> Result<S::Ok, S::Error> {
    let encode = |value: &Vec<u8>| base64::engine::general_purpose::STANDARD.encode(value);
    out.collect_map(xattrs.iter().map(|(name, value)| (String::from_utf8_lossy(name), encode(value))))
}

/// Compresses a layer's tar stream. Blocks; memory holds the table of contents, some 300 bytes for each file.
///
/// Errors: [`DiffError::Unsupported`] for what the format has no place for: files with holes, and one with the table's own name.
pub fn write_estargz(
    tar: impl Read,
    level: Option<u32>,
    limits: &Limits,
    out: impl Write,
) -> Result<Estargz, DiffError> {
    let level = level.map_or_else(Compression::default, Compression::new);
    let mut members = Members::new(out, level);
    let mut reader = TarReader::new(Recording { inner: tar, seen: Vec::new() }, limits);
    let mut table = Table::new();
    let mut buffer = vec![0; BUFFER];
    while let Some(entry) = reader.next_entry()? {
        if is_contents(&entry.name) {
            return Err(unsupported(&entry, "eStargz has a file of this name itself"));
        }
        if entry.sparse.is_some() {
            return Err(unsupported(&entry, "eStargz has no place for files with holes"));
        }
        // What stands before the content: the entry's headers, and what fills the block before them.
        members.write(&reader.source().take())?;
        if entry.kind == Kind::File && entry.size > 0 {
            write_file(&entry, &mut reader, &mut members, &mut table, &mut buffer)?;
        } else {
            table.add(&row(&entry))?;
        }
    }
    // Zeros at the end, and whatever else belongs to the stream.
    members.write(&reader.source().take())?;
    let mut rest = reader.into_source().inner;
    loop {
        match rest.read(&mut buffer) {
            Ok(0) => break,
            Ok(count) => members.write(&buffer[..count])?,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(DiffError::Read(error)),
        }
    }
    members.next()?;
    let offset = members.offset();
    let contents = table.finish();
    let digest = Digest::sha256_of(&contents);
    members.write(&archived(&contents)?)?;
    let (mut out, diff_id, size) = members.finish()?;
    out.write_all(&footer(offset)).and_then(|()| out.flush()).map_err(DiffError::Write)?;
    Ok(Estargz { contents: digest, diff_id, size })
}

fn unsupported(entry: &Entry, why: &'static str) -> DiffError {
    DiffError::Unsupported { path: EntryName::new(&entry.name), why }
}

fn is_contents(name: &[u8]) -> bool {
    let parts = name.split(|byte| *byte == b'/').filter(|part| !part.is_empty() && *part != b".");
    parts.eq([CONTENTS.as_bytes()])
}

fn write_file<R: Read, W: Write>(
    entry: &Entry,
    reader: &mut TarReader<Recording<R>>,
    members: &mut Members<W>,
    table: &mut Table,
    buffer: &mut [u8],
) -> Result<(), DiffError> {
    let name = String::from_utf8_lossy(&entry.name);
    let mut all = DigestWriter::new(io::sink());
    let (mut rows, mut at) = (Vec::new(), 0);
    while at < entry.size {
        members.next()?;
        let length = CHUNK.min(entry.size - at);
        let mut row =
            if at == 0 { self::row(entry) } else { Row { name: &name, kind: "chunk", ..Row::default() } };
        (row.offset, row.chunk_offset) = (members.offset(), at);
        if length == CHUNK {
            row.chunk_size = length;
        }
        let mut chunk = DigestWriter::new(io::sink());
        let mut left = length;
        while left > 0 {
            let want = buffer.len().min(usize::try_from(left).unwrap_or(usize::MAX));
            let count = reader.read_content(&mut buffer[..want])?;
            let bytes = &buffer[..count];
            members.write(bytes)?;
            all.write_all(bytes).and_then(|()| chunk.write_all(bytes)).map_err(DiffError::Write)?;
            // They went on their way above.
            reader.source().seen.clear();
            left -= count as u64;
        }
        row.chunk_digest = chunk.finish().1.to_string();
        at += length;
        rows.push(Some(row));
    }
    let digest = all.finish().1.to_string();
    for (index, row) in rows.into_iter().flatten().enumerate() {
        table.add(&if index == 0 { Row { digest: digest.clone(), ..row } } else { row })?;
    }
    Ok(())
}

fn row(entry: &Entry) -> Row<'_> {
    // A name that is no text has none in JSON; whoever reads it by name does not find it.
    let text = |bytes| std::str::from_utf8(bytes).unwrap_or("\u{fffd}");
    let is_device = matches!(entry.kind, Kind::CharDevice | Kind::BlockDevice);
    let (major, minor) = if is_device { entry.device } else { (0, 0) };
    Row {
        name: text(&entry.name),
        kind: match entry.kind {
            Kind::File => "reg",
            Kind::HardLink => "hardlink",
            Kind::Symlink => "symlink",
            Kind::CharDevice => "char",
            Kind::BlockDevice => "block",
            Kind::Directory => "dir",
            Kind::Fifo => "fifo",
        },
        size: if entry.kind == Kind::File { entry.size } else { 0 },
        modified: modified(entry.mtime),
        link_name: text(&entry.link),
        mode: entry.mode.into(),
        uid: entry.uid.into(),
        gid: entry.gid.into(),
        dev_major: major.into(),
        dev_minor: minor.into(),
        xattrs: &entry.xattrs,
        // Of an empty file, too.
        digest: if entry.kind == Kind::File { Digest::sha256_of("").to_string() } else { String::new() },
        ..Row::default()
    }
}

/// RFC 3339 in whole seconds; empty for 1970, which is no time.
fn modified(time: Time) -> String {
    let rounded = time.seconds.saturating_add(i64::from(time.nanos >= 500_000_000));
    if rounded == 0 {
        return String::new();
    }
    // The days since 0000-03-01, and the date by them (Howard Hinnant, "chrono-Compatible Low-Level Date Algorithms").
    let (days, seconds) = (rounded.div_euclid(86400) + 719_468, rounded.rem_euclid(86400));
    let (era, day_of_era) = (days.div_euclid(146_097), days.rem_euclid(146_097));
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted = (5 * day_of_year + 2) / 153;
    let (day, month) =
        (day_of_year - (153 * shifted + 2) / 5 + 1, if shifted < 10 { shifted + 3 } else { shifted - 9 });
    let year = year_of_era + era * 400 + i64::from(month <= 2);
    let (hour, minute, second) = (seconds / 3600, seconds / 60 % 60, seconds % 60);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}Z")
}

/// The table, as it grows.
struct Table(Vec<u8>);

impl Table {
    fn new() -> Self {
        Self(b"{\"version\":1,\"entries\":[".to_vec())
    }

    fn add(&mut self, row: &Row<'_>) -> Result<(), DiffError> {
        if !self.0.ends_with(b"[") {
            self.0.extend_from_slice(b",\n");
        }
        serde_json::to_writer(&mut self.0, row).map_err(|error| DiffError::Write(error.into()))?;
        if self.0.len() > MOST_CONTENTS {
            let (path, why) =
                (EntryName::new(row.name.as_bytes()), "eStargz' table of contents gets too long");
            return Err(DiffError::Unsupported { path, why });
        }
        Ok(())
    }

    fn finish(mut self) -> Vec<u8> {
        self.0.extend_from_slice(b"]}");
        self.0
    }
}

/// The table as a tar archive.
fn archived(contents: &[u8]) -> Result<Vec<u8>, DiffError> {
    let mut tar = TarWriter::new(Vec::with_capacity(contents.len() + 4096));
    tar.entry(&Entry {
        name: CONTENTS.as_bytes().to_vec(),
        kind: Kind::File,
        link: Vec::new(),
        mode: 0,
        uid: 0,
        gid: 0,
        size: contents.len() as u64,
        mtime: Time::default(),
        atime: None,
        device: (0, 0),
        xattrs: Xattrs::default(),
        sparse: None,
    })?;
    tar.write_content(contents)?;
    tar.end_content(contents.len() as u64)?;
    tar.finish()
}

/// An empty gzip member whose extra field (RFC 1952, 2.3.1.1) says where the table's member begins.
fn footer(offset: u64) -> Vec<u8> {
    let field = format!("{offset:016x}STARGZ");
    let length = u16::try_from(field.len()).expect("it is short").to_le_bytes();
    let outer = u16::try_from(field.len() + 4).expect("it is short").to_le_bytes();
    let mut bytes = vec![0x1f, 0x8b, 8, 4, 0, 0, 0, 0, 0, 0xff];
    bytes.extend_from_slice(&outer);
    bytes.extend_from_slice(b"SG");
    bytes.extend_from_slice(&length);
    bytes.extend_from_slice(field.as_bytes());
    // A last, stored, empty block; then the checksum and length of nothing.
    bytes.extend_from_slice(&[1, 0, 0, 0xff, 0xff, 0, 0, 0, 0, 0, 0, 0, 0]);
    bytes
}

/// A reader that keeps what was read until somebody takes it.
struct Recording<R> {
    inner: R,
    seen: Vec<u8>,
}

impl<R> Recording<R> {
    fn take(&mut self) -> Vec<u8> {
        std::mem::take(&mut self.seen)
    }
}

impl<R: Read> Read for Recording<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.inner.read(buffer)?;
        self.seen.extend_from_slice(&buffer[..count]);
        Ok(count)
    }
}

/// gzip members, one after the other.
struct Members<W: Write> {
    /// `None` only while one member ends.
    member: Option<GzEncoder<Counting<W>>>,
    begun: bool,
    level: Compression,
    plain: DigestWriter<io::Sink>,
    size: u64,
}

struct Counting<W> {
    out: W,
    count: u64,
}

impl<W: Write> Write for Counting<W> {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        let count = self.out.write(data)?;
        self.count += count as u64;
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}

impl<W: Write> Members<W> {
    fn new(out: W, level: Compression) -> Self {
        let member = Some(begin(Counting { out, count: 0 }, level));
        Self { member, begun: false, level, plain: DigestWriter::new(io::sink()), size: 0 }
    }

    fn member(&mut self) -> &mut GzEncoder<Counting<W>> {
        self.member.as_mut().expect("there is always one")
    }

    fn write(&mut self, data: &[u8]) -> Result<(), DiffError> {
        if data.is_empty() {
            return Ok(());
        }
        self.begun = true;
        self.size += data.len() as u64;
        self.plain.write_all(data).map_err(DiffError::Write)?;
        self.member().write_all(data).map_err(DiffError::Write)
    }

    /// What follows is in a member of its own.
    fn next(&mut self) -> Result<(), DiffError> {
        if std::mem::take(&mut self.begun) {
            let ended =
                self.member.take().expect("there is always one").finish().map_err(DiffError::Write)?;
            self.member = Some(begin(ended, self.level));
        }
        Ok(())
    }

    /// Where the current member begins, if nothing is in it yet.
    fn offset(&mut self) -> u64 {
        self.member().get_ref().count
    }

    fn finish(mut self) -> Result<(W, DiffId, u64), DiffError> {
        let ended = self.member.take().expect("there is always one").finish().map_err(DiffError::Write)?;
        Ok((ended.out, self.plain.finish().1.into(), self.size))
    }
}

/// No name, no time, unknown system: nothing that differs between two runs. Nothing is written before there is data.
fn begin<W: Write>(out: W, level: Compression) -> GzEncoder<W> {
    GzBuilder::new().operating_system(0xff).write(out, level)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_footer_is_as_long_as_the_format_says() {
        let footer = footer(0x1234);
        assert_eq!(footer.len(), 51);
        let mut plain = Vec::new();
        let mut decoder = flate2::read::GzDecoder::new(footer.as_slice());
        decoder.read_to_end(&mut plain).unwrap();
        assert!(plain.is_empty());
        assert_eq!(decoder.header().unwrap().extra().unwrap(), b"SG\x16\x000000000000001234STARGZ");
    }

    #[test]
    fn times_are_written_as_go_writes_them() {
        let at = |seconds| modified(Time { seconds, nanos: 0 });
        assert_eq!(at(0), "");
        assert_eq!(at(1_700_000_000), "2023-11-14T22:13:20Z");
        assert_eq!(at(951_782_400), "2000-02-29T00:00:00Z");
        assert_eq!(at(-1), "1969-12-31T23:59:59Z");
        assert_eq!(modified(Time { seconds: 1, nanos: 600_000_000 }), "1970-01-01T00:00:02Z");
    }

    fn stream(files: &[(&str, &[u8])]) -> Vec<u8> {
        let mut archive = tar::Builder::new(Vec::new());
        for (name, bytes) in files {
            let mut header = tar::Header::new_gnu();
            header.set_size(bytes.len() as u64);
            header.set_mode(0o644);
            archive.append_data(&mut header, name, *bytes).unwrap();
        }
        archive.into_inner().unwrap()
    }

    #[test]
    fn each_file_is_where_the_table_says_and_the_stream_is_as_it_was() {
        let big: Vec<u8> = (0..9_000_000_u32).map(|at| (at / 7) as u8).collect();
        let tar = stream(&[("a", b"first"), ("empty", b""), ("big", &big), (&"n".repeat(150), b"long")]);
        let mut blob = Vec::new();
        let written = write_estargz(tar.as_slice(), None, &Limits::default(), &mut blob).unwrap();
        let mut plain = Vec::new();
        flate2::read::MultiGzDecoder::new(blob.as_slice()).read_to_end(&mut plain).unwrap();
        assert!(plain.starts_with(&tar));
        assert_eq!(DiffId(Digest::sha256_of(&plain)), written.diff_id);
        assert_eq!(plain.len() as u64, written.size);

        let footer = &blob[blob.len() - 51..];
        let offset = usize::from_str_radix(std::str::from_utf8(&footer[16..32]).unwrap(), 16).unwrap();
        let mut contents = tar::Archive::new(flate2::read::GzDecoder::new(&blob[offset..]));
        let mut entry = contents.entries().unwrap().next().unwrap().unwrap();
        assert_eq!(entry.path().unwrap().to_str(), Some(CONTENTS));
        let mut json = Vec::new();
        entry.read_to_end(&mut json).unwrap();
        assert_eq!(Digest::sha256_of(&json), written.contents);
        let table: serde_json::Value = serde_json::from_slice(&json).unwrap();
        assert_eq!(table["version"], 1);
        let rows = table["entries"].as_array().unwrap();
        let names: Vec<_> =
            rows.iter().map(|row| (row["type"].as_str().unwrap(), row["size"].as_u64())).collect();
        let expected = [
            ("reg", Some(5)),
            ("reg", None),
            ("reg", Some(9_000_000)),
            ("chunk", None),
            ("chunk", None),
            ("reg", Some(4)),
        ];
        assert_eq!(names, expected);
        assert_eq!(rows[2]["digest"], Digest::sha256_of(&big).to_string());
        let mut found = Vec::new();
        for row in &rows[2..5] {
            let mut member = flate2::read::GzDecoder::new(&blob[row["offset"].as_u64().unwrap() as usize..]);
            let left = big.len() - row["chunkOffset"].as_u64().unwrap_or(0) as usize;
            let mut chunk = vec![0; left.min(4 << 20)];
            member.read_exact(&mut chunk).unwrap();
            assert_eq!(row["chunkDigest"], Digest::sha256_of(&chunk).to_string());
            found.extend(chunk);
        }
        assert!(found == big);
    }

    #[test]
    fn what_the_format_has_no_place_for_is_refused() {
        let tar = stream(&[("./stargz.index.json", b"{}")]);
        let error = write_estargz(tar.as_slice(), None, &Limits::default(), Vec::new()).unwrap_err();
        assert!(matches!(error, DiffError::Unsupported { .. }), "{error}");
        write_estargz(b"no tar".as_slice(), None, &Limits::default(), Vec::new()).unwrap_err();
    }
}
