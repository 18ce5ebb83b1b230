//! What a transfer tells its watcher.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use lapstrake_layerstore_oci::{Descriptor, Digest};
use parking_lot::Mutex;

/// Called from the transfer's task: it must not block. Byte counts come at most about ten times a second per item.
pub type ProgressFn = Arc<dyn Fn(TransferEvent) + Send + Sync>;

/// What is being transferred.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Item {
    /// An index or manifest.
    Manifest,
    /// An image config.
    Config,
    /// A layer, by its place in the manifest, bottom first.
    Layer(usize),
}

/// One step of one item's transfer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TransferEvent {
    /// What.
    pub item: Item,
    /// Which.
    pub digest: Digest,
    /// Its length in bytes.
    pub total: u64,
    /// How far it is.
    pub status: TransferStatus,
}

/// How far an item is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TransferStatus {
    /// Waits for its turn, or for another transfer of the same blob.
    Waiting,
    /// Pull: it is in the store, or the caller has no need of it.
    Exists,
    /// Bytes received so far.
    Downloading {
        /// Bytes.
        current: u64,
    },
    /// All bytes are here; they are checked and made durable.
    Verifying,
    /// Pull: it is in the store.
    Downloaded,
    /// The connection broke; it goes on from where it was after a wait.
    Retrying {
        /// The wait.
        after: Duration,
    },
    /// Push: bytes sent so far.
    Uploading {
        /// Bytes.
        current: u64,
    },
    /// Push: the registry has it in this repository.
    ExistsRemotely,
    /// Push: the registry took it from another repository of its own.
    Mounted {
        /// That repository's path.
        from: String,
    },
    /// Push: the registry has it now.
    Uploaded,
}

impl TransferEvent {
    /// The id under which Docker's clients show the item: 12 hex characters.
    pub fn id(&self) -> &str {
        self.digest.short()
    }

    /// Docker's word for the status.
    pub fn docker_status(&self) -> String {
        match &self.status {
            TransferStatus::Waiting => "Waiting".to_owned(),
            TransferStatus::Exists => "Already exists".to_owned(),
            TransferStatus::Downloading { .. } => "Downloading".to_owned(),
            TransferStatus::Verifying => "Verifying Checksum".to_owned(),
            TransferStatus::Downloaded => "Download complete".to_owned(),
            TransferStatus::Retrying { after } => {
                let seconds = after.as_secs().max(1);
                format!("Retrying in {seconds} second{}", if seconds == 1 { "" } else { "s" })
            }
            TransferStatus::Uploading { .. } => "Pushing".to_owned(),
            TransferStatus::ExistsRemotely => "Layer already exists".to_owned(),
            TransferStatus::Mounted { from } => format!("Mounted from {from}"),
            TransferStatus::Uploaded => "Pushed".to_owned(),
        }
    }

    /// Bytes done, where the status counts them.
    pub fn current(&self) -> Option<u64> {
        match self.status {
            TransferStatus::Downloading { current } | TransferStatus::Uploading { current } => Some(current),
            _ => None,
        }
    }
}

/// Reports one item's steps, thinning out byte counts.
pub(crate) struct Reporter {
    sink: ProgressFn,
    item: Item,
    digest: Digest,
    total: u64,
    last: Mutex<Option<Instant>>,
}

impl Reporter {
    pub(crate) fn new(sink: &ProgressFn, item: Item, d: &Descriptor) -> Reporter {
        Reporter { sink: sink.clone(), item, digest: d.digest.clone(), total: d.size, last: Mutex::new(None) }
    }

    pub(crate) fn say(&self, status: TransferStatus) {
        (self.sink)(TransferEvent {
            item: self.item,
            digest: self.digest.clone(),
            total: self.total,
            status,
        });
    }

    /// Reports a byte count unless one was just reported; the first and the last always are.
    pub(crate) fn bytes(&self, current: u64, status: impl FnOnce(u64) -> TransferStatus) {
        let now = Instant::now();
        {
            let mut last = self.last.lock();
            let recent = last.is_some_and(|l| now.duration_since(l) < Duration::from_millis(100));
            if recent && current != self.total {
                return;
            }
            *last = Some(now);
        }
        self.say(status(current));
    }
}
