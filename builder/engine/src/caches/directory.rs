//! A cache in a directory: an OCI layout, as buildx and buildctl have it.
//!
//! ```text
//!   <directory>/oci-layout, index.json (tag ► manifest), blobs/sha256/<hex>
//! ```
//!
//! Writing is ordered so that a kill at any line leaves the old index or the new one, with all that it names: blobs are written beside their
//! place, flushed and renamed; the index is replaced last, in the same way. Blobs that nothing names are harmless. What was half-written beside its
//! place by a process that is gone is removed by the next one who writes.

use std::{
    collections::HashSet,
    fs::{self, File},
    io::{self, Read, Write},
    path::{Path, PathBuf},
};

use lapstrake_layerstore_oci::{Descriptor, Digest, DigestReader, Index, Manifest, MediaType, gojson};
use rustix::fs::{FlockOperation, Mode, OFlags};

use super::{CacheFault, LocalManifest};

/// Longest index.
const MAX_INDEX: u64 = 4 << 20;
/// What an index names its manifests by.
const REF_NAME: &str = "org.opencontainers.image.ref.name";
/// How files begin that are being written.
const WRITING: &str = ".writing-";
/// More documents than this are behind no index that is ours to clean up after.
const MAX_DOCUMENTS: usize = 10_000;
/// What containerd names them by, which comes first.
const IMAGE_NAME: &str = "io.containerd.image.name";

/// The place of a blob.
pub(super) fn blob_path(directory: &Path, digest: &Digest) -> PathBuf {
    directory.join("blobs").join(digest.algorithm().as_str()).join(digest.hex())
}

/// Opens a file and looks at its length. Devices and pipes, which would keep us waiting, are refused.
pub(super) fn open(path: &Path) -> Result<(File, u64), CacheFault> {
    let failed = || CacheFault::io("open", path);
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK;
    let file = File::from(rustix::fs::open(path, flags, Mode::empty()).map_err(|e| failed()(e.into()))?);
    let metadata = file.metadata().map_err(failed())?;
    if !metadata.is_file() {
        return Err(failed()(io::Error::other("not a regular file")));
    }
    Ok((file, metadata.len()))
}

/// Reads a file that is no longer than `limit`.
fn read(path: &Path, limit: u64) -> Result<Vec<u8>, CacheFault> {
    let (file, _) = open(path)?;
    let mut bytes = Vec::new();
    file.take(limit + 1).read_to_end(&mut bytes).map_err(CacheFault::io("read", path))?;
    if bytes.len() as u64 > limit {
        return Err(CacheFault::unsuitable(format!("{} is longer than {limit} bytes", path.display())));
    }
    Ok(bytes)
}

/// A blob that is no longer than `limit`, verified.
pub(super) fn read_blob(directory: &Path, digest: &Digest, limit: u64) -> Result<Vec<u8>, CacheFault> {
    let path = blob_path(directory, digest);
    let bytes = read(&path, limit)?;
    let mut digester = lapstrake_layerstore_oci::Digester::new(digest.algorithm());
    digester.update(&bytes);
    if digester.finish() != *digest {
        return Err(CacheFault::unsuitable(format!("{} is not what its name says", path.display())));
    }
    Ok(bytes)
}

/// What to read of a directory.
pub(super) fn manifest(directory: &Path, wanted: &LocalManifest) -> Result<Digest, CacheFault> {
    let tag = match wanted {
        LocalManifest::Digest(digest) => return Ok(digest.clone()),
        LocalManifest::Tag(tag) => tag,
    };
    let path = directory.join("index.json");
    let index = Index::from_json(&read(&path, MAX_INDEX)?)?;
    let named =
        |key: &str| index.manifests.iter().find(|manifest| manifest.annotations.get(key) == Some(tag));
    let found = named(IMAGE_NAME).or_else(|| named(REF_NAME));
    found
        .map(|manifest| manifest.digest.clone())
        .ok_or_else(|| CacheFault::unsuitable(format!("{} names nothing {tag:?}", path.display())))
}

/// A directory that is being written to; others who write to it wait.
pub(super) struct DirectoryWriter {
    directory: PathBuf,
    /// Holds the lock.
    _lock: File,
}

impl DirectoryWriter {
    /// Makes the directory if need be.
    pub(super) fn open(directory: &Path) -> Result<Self, CacheFault> {
        let blobs = directory.join("blobs/sha256");
        fs::create_dir_all(&blobs).map_err(CacheFault::io("make", &blobs))?;
        // BuildKit's clients lock the same file, and remove it: then the lock is of a file that is gone, and is taken again.
        let path = directory.join("index.json.lock");
        loop {
            let file = File::options()
                .create(true)
                .append(true)
                .open(&path)
                .map_err(CacheFault::io("open", &path))?;
            rustix::fs::flock(&file, FlockOperation::LockExclusive)
                .map_err(|error| CacheFault::io("lock", &path)(error.into()))?;
            if is_same(&file, &path) {
                // Whoever wrote before is gone, and has let go of the lock with its end.
                for folder in [directory, &blobs] {
                    remove_entries(folder, |name| name.starts_with(WRITING))?;
                }
                return Ok(Self { directory: directory.to_owned(), _lock: file });
            }
        }
    }

    /// Whether a blob is there, whole.
    pub(super) fn has(&self, blob: &Descriptor) -> bool {
        let metadata = fs::symlink_metadata(blob_path(&self.directory, &blob.digest));
        metadata.is_ok_and(|metadata| metadata.is_file() && metadata.len() == blob.size)
    }

    /// Writes a blob, verified.
    pub(super) fn put(&self, blob: &Descriptor, from: impl Read) -> Result<(), CacheFault> {
        let path = blob_path(&self.directory, &blob.digest);
        let folder = path.parent().expect("a blob is in a folder");
        fs::create_dir_all(folder).map_err(CacheFault::io("make", folder))?;
        let failed = || CacheFault::io("write", &path);
        let mut file = tempfile::Builder::new().prefix(WRITING).tempfile_in(folder).map_err(failed())?;
        let mut from = DigestReader::with_algorithm(from, blob.digest.algorithm());
        let size = io::copy(&mut from, file.as_file_mut()).map_err(failed())?;
        let (_, digest, _) = from.finish();
        if digest != blob.digest || size != blob.size {
            return Err(CacheFault::unsuitable(format!(
                "blob {} has {size} bytes of {}, and the digest {digest}",
                blob.digest, blob.size
            )));
        }
        publish(file, &path)
    }

    /// Names a manifest, whose blobs are all there.
    pub(super) fn tag(&self, manifest: &Descriptor, tag: &str) -> Result<(), CacheFault> {
        let path = self.directory.join("index.json");
        let mut index = match read(&path, MAX_INDEX) {
            Ok(bytes) if !bytes.is_empty() => Index::from_json(&bytes)?,
            Ok(_) => Index::new(MediaType::OCI_INDEX, Vec::new()),
            Err(CacheFault::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => {
                Index::new(MediaType::OCI_INDEX, Vec::new())
            }
            Err(error) => return Err(error),
        };
        index.manifests.retain(|other| {
            let named = |key: &str| other.annotations.get(key).is_some_and(|name| name == tag);
            !named(REF_NAME) && !named(IMAGE_NAME)
        });
        let mut named = manifest.clone();
        named.annotations.insert(REF_NAME.to_owned(), tag.to_owned());
        index.manifests.push(named);
        let layout = self.directory.join("oci-layout");
        if !layout.exists() {
            self.replace(&layout, br#"{"imageLayoutVersion":"1.0.0"}"#)?;
        }
        self.replace(&path, &gojson::to_vec(&index)?)
    }

    /// Removes the blobs that nothing in the index leads to. Where something cannot be read, all stay.
    pub(super) fn reset(&self) -> Result<(), CacheFault> {
        let index = Index::from_json(&read(&self.directory.join("index.json"), MAX_INDEX)?)?;
        let (mut kept, mut documents) = (HashSet::new(), 0);
        let mut next = index.manifests;
        while let Some(descriptor) = next.pop() {
            let is_new = kept.insert(descriptor.digest.clone());
            let media_type = &descriptor.media_type;
            if !is_new || !(media_type.is_index() || media_type.is_manifest()) {
                continue;
            }
            documents += 1;
            if documents > MAX_DOCUMENTS {
                let why =
                    format!("{} leads to more than {MAX_DOCUMENTS} manifests", self.directory.display());
                return Err(CacheFault::unsuitable(why));
            }
            let json = read_blob(&self.directory, &descriptor.digest, MAX_INDEX)?;
            if media_type.is_index() {
                next.extend(Index::from_json(&json)?.manifests);
            } else {
                let manifest = Manifest::from_json(&json)?;
                next.extend(manifest.layers.into_iter().chain([manifest.config]));
            }
        }
        let kept: HashSet<&str> =
            kept.iter().filter(|digest| digest.algorithm().as_str() == "sha256").map(Digest::hex).collect();
        remove_entries(&self.directory.join("blobs/sha256"), |name| !kept.contains(name))
    }

    fn replace(&self, path: &Path, bytes: &[u8]) -> Result<(), CacheFault> {
        let failed = || CacheFault::io("write", path);
        let mut file =
            tempfile::Builder::new().prefix(WRITING).tempfile_in(&self.directory).map_err(failed())?;
        file.write_all(bytes).map_err(failed())?;
        publish(file, path)
    }
}

/// Removes files by their names. Directories, and what somebody else has removed, are passed over.
fn remove_entries(folder: &Path, is_meant: impl Fn(&str) -> bool) -> Result<(), CacheFault> {
    for entry in fs::read_dir(folder).map_err(CacheFault::io("list", folder))? {
        let entry = entry.map_err(CacheFault::io("list", folder))?;
        let is_file = entry.file_type().is_ok_and(|kind| kind.is_file());
        if is_file && entry.file_name().to_str().is_some_and(&is_meant) {
            match fs::remove_file(entry.path()) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    return Err(CacheFault::io("remove", entry.path())(error));
                }
                _ => {}
            }
        }
    }
    Ok(())
}

fn is_same(file: &File, path: &Path) -> bool {
    use std::os::unix::fs::MetadataExt;
    match (file.metadata(), fs::metadata(path)) {
        (Ok(ours), Ok(there)) => (ours.dev(), ours.ino()) == (there.dev(), there.ino()),
        _ => false,
    }
}

/// Flushes a file, gives it its name, and flushes that.
fn publish(file: tempfile::NamedTempFile, path: &Path) -> Result<(), CacheFault> {
    use std::os::unix::fs::PermissionsExt;
    let failed = || CacheFault::io("write", path);
    // A cache is for others too: as containerd's store has it.
    file.as_file().set_permissions(fs::Permissions::from_mode(0o644)).map_err(failed())?;
    file.as_file().sync_all().map_err(failed())?;
    file.persist(path).map_err(|error| failed()(error.error))?;
    let folder = path.parent().expect("a file is in a folder");
    File::open(folder).and_then(|folder| folder.sync_all()).map_err(CacheFault::io("flush", folder))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn blob(bytes: &[u8]) -> Descriptor {
        Descriptor::of(MediaType::OCI_LAYER, bytes)
    }

    #[test]
    fn a_tag_moves_and_others_stay() {
        let dir = tempfile::tempdir().unwrap();
        let writer = DirectoryWriter::open(dir.path()).unwrap();
        for (bytes, tag) in [(b"one", "a"), (b"two", "b"), (b"six", "a")] {
            writer.put(&blob(bytes), &bytes[..]).unwrap();
            writer.tag(&blob(bytes), tag).unwrap();
        }
        let at = |tag: &str| manifest(dir.path(), &LocalManifest::Tag(tag.to_owned()));
        assert_eq!((at("a").unwrap(), at("b").unwrap()), (blob(b"six").digest, blob(b"two").digest));
        assert!(at("c").unwrap_err().to_string().contains("\"c\""));
        assert_eq!(read_blob(dir.path(), &blob(b"six").digest, 3).unwrap(), b"six");
        assert!(read_blob(dir.path(), &blob(b"six").digest, 2).is_err());
        assert!(writer.has(&blob(b"two")) && !writer.has(&blob(b"ten")));
        let names: Vec<_> = fs::read_dir(dir.path().join("blobs/sha256")).unwrap().collect();
        assert_eq!(names.len(), 3, "nothing half-written stays");
    }

    #[test]
    fn blobs_that_are_not_what_their_names_say_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        let writer = DirectoryWriter::open(dir.path()).unwrap();
        assert!(writer.put(&blob(b"good"), &b"evil"[..]).is_err());
        assert!(writer.put(&blob(b"good"), &b"go"[..]).is_err());
        assert!(!writer.has(&blob(b"good")));
        fs::write(blob_path(dir.path(), &blob(b"good").digest), b"evil").unwrap();
        assert!(read_blob(dir.path(), &blob(b"good").digest, 10).is_err());
    }

    #[test]
    fn leftovers_of_who_was_killed_go_with_the_next_one() {
        let dir = tempfile::tempdir().unwrap();
        let writer = DirectoryWriter::open(dir.path()).unwrap();
        writer.put(&blob(b"one"), &b"one"[..]).unwrap();
        drop(writer);
        for name in [".writing-a", "blobs/sha256/.writing-b"] {
            fs::write(dir.path().join(name), b"half").unwrap();
        }
        let writer = DirectoryWriter::open(dir.path()).unwrap();
        assert!(!dir.path().join(".writing-a").exists());
        assert!(!dir.path().join("blobs/sha256/.writing-b").exists());
        assert!(writer.has(&blob(b"one")));
    }

    #[test]
    fn a_reset_removes_what_nothing_leads_to() {
        let dir = tempfile::tempdir().unwrap();
        let writer = DirectoryWriter::open(dir.path()).unwrap();
        let put = |bytes: &[u8]| {
            writer.put(&blob(bytes), bytes).unwrap();
            blob(bytes)
        };
        let tag = |layers: &[Descriptor], tag: &str| {
            let manifest = Manifest::new(MediaType::OCI_MANIFEST, put(b"config"), layers.to_vec());
            let json = manifest.to_json().unwrap();
            let descriptor = Descriptor::of(MediaType::OCI_MANIFEST, &json);
            writer.put(&descriptor, &json[..]).unwrap();
            writer.tag(&descriptor, tag).unwrap();
            descriptor
        };
        let (old, new, other) = (put(b"old"), put(b"new"), put(b"other"));
        let first = tag(std::slice::from_ref(&old), "latest");
        tag(std::slice::from_ref(&other), "kept");
        tag(std::slice::from_ref(&new), "latest");
        writer.reset().unwrap();
        for gone in [&old, &first] {
            assert!(!writer.has(gone));
        }
        for kept in [&new, &other, &blob(b"config")] {
            assert!(writer.has(kept));
        }
        // What the index names is not there: nobody can say what it needs, so nothing goes.
        tag(&[], "broken");
        let stray = put(b"stray");
        let broken = manifest(dir.path(), &LocalManifest::Tag("broken".to_owned())).unwrap();
        fs::remove_file(blob_path(dir.path(), &broken)).unwrap();
        assert!(writer.reset().is_err());
        assert!(writer.has(&stray));
    }

    #[test]
    fn a_damaged_index_is_not_written_over() {
        let dir = tempfile::tempdir().unwrap();
        let writer = DirectoryWriter::open(dir.path()).unwrap();
        fs::write(dir.path().join("index.json"), b"{").unwrap();
        assert!(writer.tag(&blob(b"x"), "latest").is_err());
        assert_eq!(fs::read(dir.path().join("index.json")).unwrap(), b"{");
    }
}
