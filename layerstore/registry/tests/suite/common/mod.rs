//! What the tests share: a strict store in memory, and clients for registries that are told to lie.

use std::{
    collections::BTreeMap,
    io::{self, Cursor, Write},
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, SystemTime},
};

pub(crate) use lapstrake_layerstore_conformance::registry::*;
use lapstrake_layerstore_oci::{Digest, Platform};
use lapstrake_layerstore_registry::{
    ClientOptions, LayerQuery, ProgressFn, PullTarget, RegistryClient, RegistryConfig, TransferEvent,
};
use lapstrake_layerstore_store::{
    BlobInfo, BlobReader, BlobWriter, ContentStore, Leases, Resource, StoreError,
};

#[derive(Default)]
pub(crate) struct Memory {
    blobs: Mutex<BTreeMap<Digest, Vec<u8>>>,
    pub open_writers: Arc<AtomicUsize>,
}

struct Reader(Cursor<Vec<u8>>);

impl io::Read for Reader {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        self.0.read(buf)
    }
}

impl io::Seek for Reader {
    fn seek(&mut self, pos: io::SeekFrom) -> io::Result<u64> {
        self.0.seek(pos)
    }
}

impl BlobReader for Reader {
    fn size(&self) -> u64 {
        self.0.get_ref().len() as u64
    }
}

struct Writer {
    store: Arc<Memory>,
    bytes: Vec<u8>,
}

impl Drop for Writer {
    fn drop(&mut self) {
        self.store.open_writers.fetch_sub(1, Ordering::SeqCst);
    }
}

impl Write for Writer {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        self.bytes.extend_from_slice(buf);
        Ok(buf.len())
    }
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl BlobWriter for Writer {
    fn offset(&self) -> u64 {
        self.bytes.len() as u64
    }
    fn digest(&self) -> Digest {
        Digest::sha256_of(&self.bytes)
    }
    fn commit(self: Box<Self>, expected: Option<&Digest>, size: Option<u64>) -> Result<Digest, StoreError> {
        let actual = Digest::sha256_of(&self.bytes);
        if let Some(expected) = expected.filter(|e| **e != actual) {
            return Err(StoreError::DigestMismatch { expected: expected.clone(), actual });
        }
        let len = self.bytes.len() as u64;
        if let Some(expected) = size.filter(|s| *s != len) {
            return Err(StoreError::SizeMismatch { digest: actual, expected, actual: len });
        }
        self.store.blobs.lock().unwrap().insert(actual.clone(), self.bytes.clone());
        Ok(actual)
    }
}

pub(crate) struct Store(pub Arc<Memory>);

impl ContentStore for Store {
    fn info(&self, digest: &Digest) -> Result<Option<BlobInfo>, StoreError> {
        let blobs = self.0.blobs.lock().unwrap();
        Ok(blobs.get(digest).map(|b| BlobInfo {
            digest: digest.clone(),
            size: b.len() as u64,
            created: SystemTime::UNIX_EPOCH,
            allocated: b.len() as u64,
        }))
    }
    fn reader(&self, digest: &Digest) -> Result<Box<dyn BlobReader>, StoreError> {
        match self.0.blobs.lock().unwrap().get(digest) {
            Some(b) => Ok(Box::new(Reader(Cursor::new(b.clone())))),
            None => Err(StoreError::NotFound { kind: "blob", id: digest.to_string() }),
        }
    }
    fn writer(&self) -> Result<Box<dyn BlobWriter>, StoreError> {
        self.0.open_writers.fetch_add(1, Ordering::SeqCst);
        Ok(Box::new(Writer { store: self.0.clone(), bytes: Vec::new() }))
    }
    fn remove(&self, digest: &Digest) -> Result<(), StoreError> {
        self.0.blobs.lock().unwrap().remove(digest);
        Ok(())
    }
    fn walk(&self, visit: &mut dyn FnMut(BlobInfo) -> bool) -> Result<(), StoreError> {
        for digest in self.0.blobs.lock().unwrap().keys() {
            let info =
                BlobInfo { digest: digest.clone(), size: 0, created: SystemTime::UNIX_EPOCH, allocated: 0 };
            if !visit(info) {
                break;
            }
        }
        Ok(())
    }
}

/// A store, a lease on it, and the events of transfers.
pub(crate) struct Yard {
    pub memory: Arc<Memory>,
    pub leases: Leases,
    pub target: PullTarget,
    pub events: Arc<Mutex<Vec<TransferEvent>>>,
    pub progress: ProgressFn,
}

impl Yard {
    pub(crate) fn new() -> Yard {
        let memory = Arc::new(Memory::default());
        let leases = Leases::default();
        let target =
            PullTarget { content: Arc::new(Store(memory.clone())), lease: Arc::new(leases.create()) };
        let events: Arc<Mutex<Vec<TransferEvent>>> = Arc::default();
        let sink = events.clone();
        Yard { memory, leases, target, events, progress: Arc::new(move |e| sink.lock().unwrap().push(e)) }
    }

    pub(crate) fn has(&self, digest: &Digest) -> bool {
        self.memory.blobs.lock().unwrap().contains_key(digest)
    }

    pub(crate) fn held(&self, digest: &Digest) -> bool {
        self.leases.held(&Resource::Blob(digest.clone()))
    }

    pub(crate) fn blobs(&self) -> usize {
        self.memory.blobs.lock().unwrap().len()
    }

    pub(crate) fn put(&self, bytes: &[u8]) -> Digest {
        self.target.content.write_small(bytes).unwrap()
    }

    pub(crate) fn put_image(&self, image: &Image) {
        for (_, bytes) in image.documents.values() {
            self.put(bytes);
        }
        for bytes in image.blobs.values() {
            self.put(bytes);
        }
    }

    pub(crate) fn statuses(&self, digest: &Digest) -> Vec<String> {
        let events = self.events.lock().unwrap();
        let mut all: Vec<String> =
            events.iter().filter(|e| e.digest == *digest).map(TransferEvent::docker_status).collect();
        all.dedup();
        all
    }

    /// Waits until no writer is open: the threads that end with a cancelled transfer do so soon.
    pub(crate) async fn no_open_writers(&self) {
        while self.memory.open_writers.load(Ordering::SeqCst) > 0 {
            tokio::task::yield_now().await;
        }
    }
}

pub(crate) fn all_layers(_: &LayerQuery<'_>) -> bool {
    true
}

pub(crate) fn linux() -> Platform {
    Platform::new("linux", "amd64")
}

pub(crate) fn options() -> ClientOptions {
    ClientOptions {
        backoff: Duration::from_millis(1),
        max_backoff: Duration::from_millis(20),
        max_attempts: 3,
        ..ClientOptions::default()
    }
}

/// A client for fakes: plain HTTP on loopback, found without configuration.
pub(crate) fn client() -> RegistryClient {
    RegistryClient::new(RegistryConfig::default(), options())
}

pub(crate) fn impatient() -> RegistryClient {
    RegistryClient::new(
        RegistryConfig::default(),
        ClientOptions { stall_timeout: Duration::from_millis(200), ..options() },
    )
}
