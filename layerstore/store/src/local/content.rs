//! Blobs as files.
//!
//! ```text
//! content/ingest/<random>          being received, or moved away to be deleted
//! content/blobs/sha256/<hex>       complete; never written again
//! ```
//!
//! A blob is received into `ingest`, flushed, renamed to its place, and its directory flushed: the rename publishes it, whole or
//! not at all. Removal forgets what the metadata says of it first, moves it back to `ingest`, then deletes it.
//! A crash between any two of these leaves at most a file in `ingest`, which the next start deletes.

use std::{
    fs::{self, File, OpenOptions, Permissions},
    io::{self, BufWriter, Read, Seek, SeekFrom, Write},
    os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt},
    path::{Path, PathBuf},
    sync::Arc,
};

use lapstrake_layerstore_oci::{Algorithm, Digest, DigestReader, Digester};
use parking_lot::RwLock;
use rusqlite::OptionalExtension;

use super::Metadata;
use crate::{
    BlobInfo, BlobReader, BlobWriter, ContentStore, Leases, Leftovers, Resource, SnapshotId, StoreError,
    Usage,
};

/// Layer streams come in pieces of a few hundred bytes (tar headers) as well as large ones.
const BUFFER: usize = 128 << 10;
const ALGORITHMS: [Algorithm; 2] = [Algorithm::Sha256, Algorithm::Sha512];

/// [`ContentStore`] in a directory. Cheap to clone.
#[derive(Debug, Clone)]
pub struct LocalContent {
    root: PathBuf,
    metadata: Metadata,
    leases: Leases,
    // For reading while a blob is published, for writing while some are removed: a commit that finds its blob to be there
    // may rely on it.
    publishing: Arc<RwLock<()>>,
}

impl LocalContent {
    pub(super) fn open(root: PathBuf, metadata: Metadata, leases: Leases) -> Result<Self, StoreError> {
        let content = Self { root, metadata, leases, publishing: Arc::default() };
        for algorithm in ALGORITHMS {
            make_directory(&content.root.join("blobs").join(algorithm.as_str()))?;
        }
        let ingest = content.ingest();
        make_directory(&ingest)?;
        for leftover in read_directory(&ingest)? {
            fs::remove_file(&leftover).map_err(StoreError::io("remove leftover", leftover))?;
        }
        Ok(content)
    }

    fn ingest(&self) -> PathBuf {
        self.root.join("ingest")
    }

    fn directory(&self, digest: &Digest) -> PathBuf {
        self.root.join("blobs").join(digest.algorithm().as_str())
    }

    // A digest is checked when it is made: its hex part is a file name and nothing else.
    fn blob(&self, digest: &Digest) -> PathBuf {
        self.directory(digest).join(digest.hex())
    }

    fn fresh(&self) -> PathBuf {
        self.ingest().join(SnapshotId::random().as_str())
    }

    /// Removes blobs but for the deletion of their files. The caller keeps commits out.
    fn take_away(&self, digests: &[Digest]) -> Result<Leftovers, StoreError> {
        self.forget_records(digests)?;
        let mut leftovers = Leftovers::none();
        for digest in digests {
            let (blob, away) = (self.blob(digest), self.fresh());
            match fs::rename(&blob, &away) {
                Ok(()) => leftovers.push(move || delete(&away)),
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(StoreError::io("remove blob", blob)(error)),
            }
        }
        Ok(leftovers)
    }

    /// Forgets what the metadata says of these blobs, in one transaction.
    fn forget_records(&self, digests: &[Digest]) -> Result<(), StoreError> {
        let mut known = false;
        self.metadata.read(|db| {
            for digest in digests {
                known |= super::records::exists(
                    db,
                    "SELECT 1 FROM layer_blob WHERE digest = ?1 UNION ALL SELECT 1 FROM image WHERE manifest = ?1",
                    digest.as_str(),
                )?;
            }
            Ok(())
        })?;
        if !known {
            return Ok(());
        }
        self.metadata.write(|txn| {
            for digest in digests {
                let image: Option<String> = txn
                    .prepare_cached("SELECT id FROM image WHERE manifest = ?1 ORDER BY seq LIMIT 1")
                    .and_then(|mut select| select.query_row([digest.as_str()], |row| row.get(0)).optional())
                    .map_err(StoreError::metadata("look for users of a blob"))?;
                if let Some(image) = image {
                    let by = format!("image {image}");
                    return Err(StoreError::InUse { kind: "blob", id: digest.to_string(), by });
                }
                txn.prepare_cached("DELETE FROM layer_blob WHERE digest = ?1")
                    .and_then(|mut delete| delete.execute([digest.as_str()]))
                    .map_err(StoreError::metadata("forget blob"))?;
            }
            Ok(())
        })
    }
}

impl ContentStore for LocalContent {
    fn info(&self, digest: &Digest) -> Result<Option<BlobInfo>, StoreError> {
        let path = self.blob(digest);
        match fs::symlink_metadata(&path) {
            Ok(metadata) => info(digest.clone(), &path, &metadata).map(Some),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(StoreError::io("look at blob", path)(error)),
        }
    }

    fn reader(&self, digest: &Digest) -> Result<Box<dyn BlobReader>, StoreError> {
        let path = self.blob(digest);
        let file = File::open(&path).map_err(|error| match error.kind() {
            io::ErrorKind::NotFound => StoreError::not_found("blob", digest),
            _ => StoreError::io("open blob", &path)(error),
        })?;
        let size = file.metadata().map_err(StoreError::io("look at blob", &path))?.len();
        Ok(Box::new(LocalReader { file, size }))
    }

    fn writer(&self) -> Result<Box<dyn BlobWriter>, StoreError> {
        let path = self.fresh();
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&path)
            .map_err(StoreError::io("create", &path))?;
        let ingest = Ingest { path };
        Ok(Box::new(LocalWriter {
            content: self.clone(),
            file: BufWriter::with_capacity(BUFFER, file),
            ingest,
            digester: Digester::sha256(),
            offset: 0,
        }))
    }

    fn remove(&self, digest: &Digest) -> Result<(), StoreError> {
        let removing = self.publishing.write();
        let leftovers = self.take_away(std::slice::from_ref(digest))?;
        drop(removing);
        leftovers.delete().map(drop)
    }

    fn forget(&self, digests: &[Digest]) -> Result<(Vec<Digest>, Leftovers), StoreError> {
        // Asked once more: a writer holds its blob before it commits it, without waiting for collection. It may even have
        // put the blob into an image and let go of it since collection looked at the images.
        let _removing = self.publishing.write();
        let unheld =
            |digest: &&Digest| !self.leases.held_since_collecting(&Resource::Blob((*digest).clone()));
        let digests: Vec<Digest> = digests.iter().filter(unheld).cloned().collect();
        let leftovers = self.take_away(&digests)?;
        Ok((digests, leftovers))
    }

    fn walk(&self, visit: &mut dyn FnMut(BlobInfo) -> bool) -> Result<(), StoreError> {
        for algorithm in ALGORITHMS {
            for path in read_directory(&self.root.join("blobs").join(algorithm.as_str()))? {
                let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
                let Ok(digest) = Digest::parse(&format!("{algorithm}:{name}")) else {
                    // Somebody else's: neither ours to read nor to delete.
                    tracing::warn!(path = %path.display(), "a file that is no blob lies among the blobs");
                    continue;
                };
                match fs::symlink_metadata(&path) {
                    Ok(metadata) if !visit(info(digest, &path, &metadata)?) => return Ok(()),
                    Ok(_) => {}
                    Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                    Err(error) => return Err(StoreError::io("look at blob", path)(error)),
                }
            }
        }
        Ok(())
    }
}

fn info(digest: Digest, path: &Path, metadata: &fs::Metadata) -> Result<BlobInfo, StoreError> {
    if !metadata.is_file() {
        return Err(StoreError::Damaged { path: path.to_owned(), why: "not a regular file".to_owned() });
    }
    let created = metadata.modified().map_err(StoreError::io("look at blob", path))?;
    Ok(BlobInfo { digest, size: metadata.len(), allocated: metadata.blocks() * 512, created })
}

/// Deletes a file that was moved away, and says what that frees.
fn delete(away: &Path) -> Result<Usage, StoreError> {
    let metadata = fs::symlink_metadata(away).map_err(StoreError::io("look at", away))?;
    fs::remove_file(away).map_err(StoreError::io("delete", away))?;
    Ok(Usage { bytes: metadata.blocks() * 512, inodes: 1 })
}

/// The paths in a directory, in order of their names.
fn read_directory(path: &Path) -> Result<Vec<PathBuf>, StoreError> {
    let mut paths = fs::read_dir(path)
        .and_then(|entries| {
            entries.map(|entry| entry.map(|entry| entry.path())).collect::<io::Result<Vec<_>>>()
        })
        .map_err(StoreError::io("list", path))?;
    paths.sort();
    Ok(paths)
}

fn make_directory(path: &Path) -> Result<(), StoreError> {
    fs::DirBuilder::new().recursive(true).mode(0o700).create(path).map_err(StoreError::io("create", path))
}

fn flush_directory(path: &Path) -> Result<(), StoreError> {
    File::open(path).and_then(|directory| directory.sync_all()).map_err(StoreError::io("flush", path))
}

struct LocalReader {
    file: File,
    size: u64,
}

impl Read for LocalReader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.file.read(buffer)
    }
}

impl Seek for LocalReader {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        self.file.seek(to)
    }
}

impl BlobReader for LocalReader {
    fn size(&self) -> u64 {
        self.size
    }
}

/// The file of a blob being received; deleted when dropped, unless it was renamed away.
struct Ingest {
    path: PathBuf,
}

impl Drop for Ingest {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_file(&self.path)
            && error.kind() != io::ErrorKind::NotFound
        {
            tracing::warn!(path = %self.path.display(), %error, "leftover stays until the next start");
        }
    }
}

struct LocalWriter {
    content: LocalContent,
    file: BufWriter<File>,
    ingest: Ingest,
    digester: Digester,
    offset: u64,
}

impl Write for LocalWriter {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.file.write(bytes)?;
        self.digester.update(&bytes[..written]);
        self.offset += written as u64;
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

impl BlobWriter for LocalWriter {
    fn offset(&self) -> u64 {
        self.offset
    }

    fn digest(&self) -> Digest {
        self.digester.clone().finish()
    }

    fn commit(
        self: Box<Self>,
        expected: Option<&Digest>,
        expected_size: Option<u64>,
    ) -> Result<Digest, StoreError> {
        let Self { content, file, ingest, digester, offset } = *self;
        let failed = |doing| StoreError::io(doing, &ingest.path);
        let mut file = file.into_inner().map_err(|error| failed("write")(error.into_error()))?;
        let actual = match expected {
            Some(expected) if expected.algorithm() != Algorithm::Sha256 => {
                hash(&mut file, expected.algorithm()).map_err(failed("hash"))?
            }
            _ => digester.finish(),
        };
        let digest = expected.unwrap_or(&actual);
        // The size first: a truncated download says so, instead of "digest mismatch".
        if let Some(expected) = expected_size
            && expected != offset
        {
            return Err(StoreError::SizeMismatch { digest: digest.clone(), expected, actual: offset });
        }
        if *digest != actual {
            return Err(StoreError::DigestMismatch { expected: digest.clone(), actual });
        }
        file.set_permissions(Permissions::from_mode(0o444)).map_err(failed("set permissions of"))?;
        file.sync_all().map_err(failed("flush"))?;
        let blob = content.blob(&actual);
        {
            let _publishing = content.publishing.read();
            // One that is there with another length was damaged from outside; the bytes here are the right ones.
            let there =
                fs::symlink_metadata(&blob).is_ok_and(|there| there.is_file() && there.len() == offset);
            if !there {
                fs::rename(&ingest.path, &blob).map_err(StoreError::io("publish blob", &blob))?;
            }
        }
        // Also when another writer has just renamed it: that one may not have come this far yet.
        flush_directory(&content.directory(&actual))?;
        Ok(actual)
    }
}

fn hash(file: &mut File, algorithm: Algorithm) -> io::Result<Digest> {
    file.seek(SeekFrom::Start(0))?;
    let mut reader = DigestReader::with_algorithm(file, algorithm);
    io::copy(&mut reader, &mut io::sink())?;
    Ok(reader.finish().1)
}
