//! Archives: what they leave behind, and what they must leave alone.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    io::Read as _,
    os::{
        fd::AsFd as _,
        unix::{ffi::OsStrExt as _, fs::MetadataExt as _},
    },
    path::{Path, PathBuf},
};

use lapstrake_layerstore_diff::{
    ArchiveOptions, ArchiveReader, Limits, WriteOptions, apply, decompress, is_archive, unpack_archive,
    unpack_context, write_layer, write_tree,
};
use lapstrake_layerstore_store::DiffSource;
use tempfile::TempDir;

/// Small enough that no input makes work for the disk.
const LIMITS: Limits = Limits {
    entries: 400,
    name: 1024,
    extended_header: 1 << 16,
    xattr: 1 << 12,
    file: 1 << 20,
    content: 1 << 21,
    stream: 1 << 23,
};

/// Where `/` and `..` of an archive are to end: everything around it is looked at before and after.
struct Yard {
    dir: TempDir,
    around: Vec<PathBuf>,
    before: BTreeMap<PathBuf, Vec<u8>>,
}

impl Yard {
    fn new() -> Yard {
        let dir = tempfile::Builder::new().prefix("lapstrake-fuzz-").tempdir().expect("a directory");
        for path in ["target", "neighbour/below", "lower/dir", "root/inside/dir", "root/etc"] {
            fs::create_dir_all(dir.path().join(path)).expect("a directory");
        }
        for path in
            ["neighbour/file", "neighbour/below/file", "lower/file", "lower/dir/file", "root/etc/file"]
        {
            fs::write(dir.path().join(path), path).expect("a file");
        }
        std::os::unix::fs::symlink("../neighbour", dir.path().join("lower/link")).expect("a link");
        let mut yard = Yard { dir, around: Vec::new(), before: BTreeMap::new() };
        yard.around = ["neighbour", "lower", "root/etc"].map(|path| yard.at(path)).to_vec();
        yard.before = yard.look();
        yard
    }

    fn at(&self, path: &str) -> PathBuf {
        self.dir.path().join(path)
    }

    fn look(&self) -> BTreeMap<PathBuf, Vec<u8>> {
        let mut seen = BTreeMap::new();
        self.around.iter().for_each(|path| look(path, &mut seen));
        let names = |path: &Path| {
            let mut names: Vec<_> = fs::read_dir(path)
                .expect("it is there")
                .map(|entry| entry.expect("an entry").file_name())
                .collect();
            names.sort();
            names.join("/".as_ref()).as_bytes().to_vec()
        };
        for path in ["", "root"] {
            seen.insert(self.at(path), names(&self.at(path)));
        }
        seen
    }

    #[track_caller]
    fn unchanged(&self) {
        assert_eq!(self.look(), self.before, "outside of the target");
    }
}

/// Everything about a tree that an archive could change.
fn look(path: &Path, seen: &mut BTreeMap<PathBuf, Vec<u8>>) {
    let meta = fs::symlink_metadata(path).expect("it is there");
    let mut facts =
        format!("{:o} {}:{} {} {}", meta.mode(), meta.uid(), meta.gid(), meta.mtime(), meta.nlink());
    if meta.is_dir() {
        for entry in fs::read_dir(path).expect("it can be read") {
            look(&entry.expect("an entry").path(), seen);
        }
    } else if meta.is_file() {
        facts.push_str(&fs::read_to_string(path).expect("it is ours"));
    } else if meta.is_symlink() {
        facts.push_str(&fs::read_link(path).expect("it is a link").display().to_string());
    }
    seen.insert(path.to_owned(), facts.into_bytes());
}

/// An archive is read member by member, and unpacked as a context and as what `ADD` extracts: nothing around the target changes, and what
/// is there afterwards can be written and unpacked again.
pub(crate) fn archive(data: &[u8]) {
    is_archive(data);
    if let Ok(plain) = decompress(data) {
        // As far as it goes, within bounds: a little input may become much.
        let mut sink = Vec::new();
        let _ = plain.take(1 << 20).read_to_end(&mut sink);
    }
    let data = with_checksums(data);
    let mut reader = ArchiveReader::new(&data[..], &LIMITS);
    let mut members = 0;
    while let Ok(Some(member)) = reader.next_member() {
        members += 1;
        assert!(member.name.len() <= LIMITS.name && member.link.len() <= LIMITS.name);
        let mut content = Vec::new();
        let read = std::io::Read::by_ref(&mut reader).take(1 << 20).read_to_end(&mut content);
        assert!(read.is_err() || content.len() as u64 <= member.size, "{member:?}");
    }
    if members == 0 {
        return;
    }
    let yard = Yard::new();
    let target = yard.at("target");
    let unpacked = unpack_context(&data[..], &target, &LIMITS);
    yard.unchanged();
    if unpacked.is_ok() {
        let again = Yard::new();
        let first = tree(&target);
        unpack_context(&first[..], &again.at("target"), &LIMITS).expect("what was written can be unpacked");
        let second = tree(&again.at("target"));
        assert!(first == second, "{:?}\n{:?}", names(&first), names(&second));
    }
    let root = File::open(yard.at("root")).expect("it is there");
    let options = ArchiveOptions { owner: (members % 2 == 0).then_some((7, 8)) };
    let _ = unpack_archive(&data[..], root.as_fd(), Path::new("inside/dir"), &options, &LIMITS);
    yard.unchanged();
}

fn tree(path: &Path) -> Vec<u8> {
    let mut out = Vec::new();
    let root = File::open(path).expect("it is there");
    write_tree(root.as_fd(), &WriteOptions::default(), &mut |_| true, &mut out).expect("it can be written");
    out
}

/// A layer is applied in both forms of snapshots: what is below and around stays as it is, and the layer that is written from it is, applied
/// again, the same.
pub(crate) fn layer(data: &[u8]) {
    let data = with_checksums(data);
    if !matches!(ArchiveReader::new(&data[..], &LIMITS).next_member(), Ok(Some(_))) {
        return;
    }
    let yard = Yard::new();
    let overlay = |yard: &Yard| DiffSource::OverlayUpper {
        upper: yard.at("target"),
        lower: vec![yard.at("lower")],
        deletions: Some(yard.at("deletions")),
    };
    let applied = apply(&data[..], &overlay(&yard), &LIMITS);
    yard.unchanged();
    let mut first = Vec::new();
    if applied.is_ok() && write_layer(&overlay(&yard), &WriteOptions::default(), &mut first).is_ok() {
        let again = Yard::new();
        let mut second = Vec::new();
        apply(&first[..], &overlay(&again), &LIMITS).expect("what was written can be applied");
        write_layer(&overlay(&again), &WriteOptions::default(), &mut second)
            .expect("it can be written again");
        assert!(first == second, "{:?}\n{:?}", names(&first), names(&second));
    }
    let trees = Yard::new();
    let _ = apply(
        &data[..],
        &DiffSource::Trees { lower: None, upper: trees.at("target"), deletions: None },
        &LIMITS,
    );
    trees.unchanged();
}

fn names(data: &[u8]) -> Vec<String> {
    let mut reader = ArchiveReader::new(data, &LIMITS);
    let mut names = Vec::new();
    while let Ok(Some(member)) = reader.next_member() {
        names.push(format!("{} {:?}", String::from_utf8_lossy(&member.name), member.kind));
    }
    names
}

/// The archive with checksums that are right: a fuzzer cannot find them.
fn with_checksums(data: &[u8]) -> Vec<u8> {
    const BLOCK: usize = 512;
    let mut data = data.to_vec();
    let mut at = 0;
    while let Some(header) = data.get_mut(at..at + BLOCK) {
        at += BLOCK;
        if header.iter().all(|byte| *byte == 0) {
            continue;
        }
        header[148..156].fill(b' ');
        let sum: u32 = header.iter().map(|byte| u32::from(*byte)).sum();
        header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        let size = std::str::from_utf8(&header[124..135]).ok();
        let size = size.and_then(|text| usize::from_str_radix(text.trim(), 8).ok()).unwrap_or(0);
        at = at.saturating_add(size.next_multiple_of(BLOCK));
    }
    data
}
