//! Collection: removing what nobody needs any more.
//!
//! ```text
//!  kept, because of …
//!    image       its snapshots; its manifest, the targets of its names, and all they refer to; the blobs of its layers
//!    lease       what it holds
//!    Holder      what it holds (the build cache)
//!    child       a snapshot's parents
//!    snapshot    the blobs of the layer that it is: a tar made by others cannot be made again from its files
//!    being active   snapshots that are being written, while they may have an owner (see `collect`)
//!  everything else goes
//! ```
//!
//! # Why nothing in use can go
//!
//! Whoever makes a thing holds it by a lease *before* it is there, and lets go of it only *after* an image or a holder has it.
//! So what is there is listed first, then leases are asked, then images and holders: a thing that is seen
//! is found with one of them, wherever on this way it is. The other direction, from an image or holder to a lease, happens
//! under [`Leases::guard`](crate::Leases::guard), which waits while this decides.
//!
//! # Order of writes
//!
//! Records go in one transaction, flushed; then blobs are moved out of sight; then others may go on, and only then are
//! files deleted. A crash between any two leaves files that nothing names, which the next start removes.

use std::{
    collections::{BTreeSet, HashMap, HashSet},
    sync::Arc,
};

use lapstrake_layerstore_oci::{Descriptor, DiffId, Digest, Index, Manifest};
use parking_lot::Mutex;

use crate::{
    BlobInfo, ContentStore, Metadata, Resource, SnapshotInfo, SnapshotKey, SnapshotKind, SnapshotName,
    StoreError, Stores, error::found,
};

/// Larger ones are refused where they come in.
const MAX_MANIFEST: u64 = 32 << 20;

/// Somebody besides images and leases who needs things to stay, such as the build cache.
pub trait Holder: Send + Sync {
    /// All that it holds. Called while lookups wait: metadata only, no other I/O, and nothing that takes
    /// [`Leases::guard`](crate::Leases::guard).
    fn holds(&self) -> Result<Vec<Resource>, StoreError>;
}

/// What a collection removed.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Collected {
    /// Committed snapshots, children first.
    pub snapshots: Vec<SnapshotName>,
    /// Active snapshots and views.
    pub keys: Vec<SnapshotKey>,
    /// Blobs.
    pub blobs: Vec<Digest>,
    /// Bytes on disk that their deletion freed: what [`crate::disk_usage`] counts less.
    pub bytes: u64,
}

/// Removes what nobody needs any more. One per store; it runs one collection at a time.
pub struct Collector {
    stores: Stores,
    holders: Vec<Arc<dyn Holder>>,
    // So that manifests are not read while lookups wait. Also the lock that keeps a second collection out.
    references: Mutex<References>,
}

/// Which active snapshots go.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Keys {
    /// Those that a lease held and none holds now.
    Ended,
    /// All that nobody holds.
    Unheld,
}

impl Collector {
    /// A collector of `stores`, which leaves alone what `holders` hold.
    pub fn new(stores: Stores, holders: Vec<Arc<dyn Holder>>) -> Self {
        Self { stores, holders, references: Mutex::default() }
    }

    /// Removes committed snapshots and blobs that nobody needs, and active snapshots and views whose leases have all ended. (Those
    /// that never had a lease stay until [`Self::collect_at_start`].)
    ///
    /// Others may work meanwhile: lookups wait while it decides, nobody waits while files are deleted. After an error some
    /// things may be gone already; each is gone whole. Never call it inside [`Leases::guard`](crate::Leases::guard).
    pub fn collect(&self) -> Result<Collected, StoreError> {
        self.run(Keys::Ended)
    }

    /// As [`Self::collect`] before any work begins: an active snapshot or view that no holder keeps was left by a process that ended.
    ///
    /// Reads the whole database first: nothing is removed on the word of a damaged one ([`StoreError::Damaged`]).
    pub fn collect_at_start(&self, metadata: &Metadata) -> Result<Collected, StoreError> {
        metadata.check()?;
        self.run(Keys::Unheld)
    }

    /// [`Self::collect`] after `forget` let go of things, and no other collection in between: what that freed is told here and nowhere else.
    pub fn collect_after<T, E: From<StoreError>>(
        &self,
        forget: impl FnOnce() -> Result<T, E>,
    ) -> Result<(T, Collected), E> {
        let mut references = self.references.lock();
        let forgotten = forget()?;
        Ok((forgotten, self.locked(Keys::Ended, &mut references)?))
    }

    fn run(&self, which: Keys) -> Result<Collected, StoreError> {
        self.locked(which, &mut self.references.lock())
    }

    /// With the lock that keeps a second collection out.
    fn locked(&self, which: Keys, references: &mut References) -> Result<Collected, StoreError> {
        let Stores { content, snapshots, leases, .. } = &self.stores;
        // First without keeping anybody out, to have read the manifests. Only the second decision counts.
        let likely = self.decide(which, references)?;
        if likely.is_empty() {
            leases.forget_ended(&likely.ended);
            return Ok(Collected::default());
        }

        let collecting = leases.collecting();
        let doomed = self.decide(which, references)?;
        let trees = snapshots.forget(&doomed.keys, &doomed.names)?;
        leases.forget_ended(&doomed.ended);
        let digests: Vec<Digest> = doomed.blobs.iter().map(|blob| blob.digest.clone()).collect();
        let forgotten = content.forget(&digests);
        drop(collecting);

        // The trees are forgotten: they are deleted also when the blobs could not be.
        let deleted = trees.delete();
        let (blobs, files) = forgotten?;
        let freed = files.delete();
        let bytes = deleted?.bytes + freed?.bytes;
        Ok(Collected { snapshots: doomed.names, keys: doomed.keys, blobs, bytes })
    }

    /// What nobody needs. The order of the questions matters: see the module's text.
    fn decide(&self, which: Keys, references: &mut References) -> Result<Doomed, StoreError> {
        let Stores { content, snapshots, images, leases, .. } = &self.stores;
        // Before the list: a key that ended and is not listed is gone, rather than too new for the list.
        let ended = leases.ended();
        let mut trees: Vec<SnapshotInfo> = Vec::new();
        snapshots.walk(&mut |snapshot| {
            trees.push(snapshot);
            true
        })?;
        let mut blobs: Vec<BlobInfo> = Vec::new();
        content.walk(&mut |blob| {
            blobs.push(blob);
            true
        })?;
        let mut kept = Kept { ended, ..Kept::default() };
        kept.add(leases.all_held());
        let images = images.list()?;
        for holder in &self.holders {
            kept.add(holder.holds()?);
        }

        let mut documents: Vec<Digest> = Vec::new();
        for image in images {
            kept.names.extend(image.top);
            kept.diff_ids.extend(image.diff_ids);
            documents.extend(image.manifest);
            let targets = image.names.into_iter().filter_map(|name| name.target);
            documents.extend(targets.map(|target| target.digest));
        }
        kept.blobs.extend(references.reach(content.as_ref(), documents)?);

        let mut doomed = Doomed::default();
        // Children come after their parents, so going backwards every child has kept its parent before that is asked about.
        for tree in trees.into_iter().rev() {
            let stays = match &tree.kind {
                SnapshotKind::Committed(name) => kept.names.contains(name),
                SnapshotKind::Active(key) | SnapshotKind::View(key) => {
                    kept.keys.contains(key) || (which == Keys::Ended && !kept.ended.contains(key))
                }
            };
            match tree.kind {
                _ if stays => kept.names.extend(tree.parent),
                SnapshotKind::Committed(name) => doomed.names.push(name),
                SnapshotKind::Active(key) | SnapshotKind::View(key) => doomed.keys.push(key),
            }
        }
        let mut of_trees: Option<HashSet<DiffId>> = None;
        for blob in blobs {
            if kept.blobs.contains(&blob.digest) {
                continue;
            }
            let layers = self.stores.layers.blob_layers(&blob.digest)?;
            if layers.iter().any(|layer| kept.diff_ids.contains(layer)) {
                continue;
            }
            // Asked only where there is a layer's blob that no image needs.
            if !layers.is_empty() && of_trees.is_none() {
                of_trees = Some(self.diff_ids(&kept.names)?);
            }
            let is_needed = |layer| of_trees.as_ref().is_some_and(|known| known.contains(layer));
            if !layers.iter().any(is_needed) {
                doomed.blobs.push(blob);
            }
        }
        // What a holder keeps is asked about again when that lets go of it.
        doomed.ended = kept.ended.into_iter().filter(|key| !kept.keys.contains(key)).collect();
        Ok(doomed)
    }

    /// The layers that trees are, as far as that is known.
    fn diff_ids(&self, trees: &HashSet<SnapshotName>) -> Result<HashSet<DiffId>, StoreError> {
        let known = trees.iter().map(|tree| self.stores.layers.by_snapshot(tree));
        known.filter_map(|layer| layer.map(|layer| layer.map(|layer| layer.diff_id)).transpose()).collect()
    }
}

impl std::fmt::Debug for Collector {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Collector").field("holders", &self.holders.len()).finish_non_exhaustive()
    }
}

/// What somebody needs; of snapshots without their parents.
#[derive(Default)]
struct Kept {
    names: HashSet<SnapshotName>,
    keys: HashSet<SnapshotKey>,
    blobs: HashSet<Digest>,
    diff_ids: HashSet<DiffId>,
    // Active snapshots whose leases have ended.
    ended: BTreeSet<SnapshotKey>,
}

impl Kept {
    fn add(&mut self, resources: impl IntoIterator<Item = Resource>) {
        for resource in resources {
            match resource {
                Resource::Snapshot(name) => drop(self.names.insert(name)),
                Resource::Key(key) => drop(self.keys.insert(key)),
                Resource::Blob(digest) => drop(self.blobs.insert(digest)),
                // An image that is held cannot be deleted, and all images are asked.
                Resource::Image(_) => {}
            }
        }
    }
}

/// What nobody needs.
#[derive(Default)]
struct Doomed {
    keys: Vec<SnapshotKey>,
    // Children first.
    names: Vec<SnapshotName>,
    blobs: Vec<BlobInfo>,
    // Keys that need not be looked at again.
    ended: Vec<SnapshotKey>,
}

impl Doomed {
    fn is_empty(&self) -> bool {
        self.keys.is_empty() && self.names.is_empty() && self.blobs.is_empty()
    }
}

/// What each manifest and index refers to, as far as it was read. Blobs never change, so neither does this.
#[derive(Default)]
struct References(HashMap<Digest, Vec<(Digest, bool)>>);

impl References {
    /// `documents` and all that they refer to, directly or through others. Forgets what was read of any other.
    fn reach(
        &mut self,
        content: &dyn ContentStore,
        documents: Vec<Digest>,
    ) -> Result<HashSet<Digest>, StoreError> {
        let mut reached: HashSet<Digest> = HashSet::new();
        let mut read = HashMap::new();
        let mut todo: Vec<(Digest, bool)> = documents.into_iter().map(|digest| (digest, true)).collect();
        while let Some((digest, is_document)) = todo.pop() {
            // A config or layer may be met before as such; a document is read however it was met.
            let first = reached.insert(digest.clone());
            if !is_document || !first && read.contains_key(&digest) {
                continue;
            }
            let references = match self.0.remove(&digest) {
                Some(references) => references,
                None => match references(content, &digest)? {
                    Some(references) => references,
                    None => continue,
                },
            };
            todo.extend(references.iter().cloned());
            read.insert(digest, references);
        }
        self.0 = read;
        Ok(reached)
    }
}

/// What a manifest or index refers to, and whether that is again such a document. `None` when it is not here: the manifests of
/// other platforms seldom are.
fn references(
    content: &dyn ContentStore,
    digest: &Digest,
) -> Result<Option<Vec<(Digest, bool)>>, StoreError> {
    let Some(document) = found(content.read_small(digest, MAX_MANIFEST))? else { return Ok(None) };
    let digests = |descriptors: Vec<Descriptor>, is_document| {
        descriptors.into_iter().map(move |descriptor| (descriptor.digest, is_document))
    };
    if let Ok(manifest) = Manifest::from_json(&document) {
        return Ok(Some(
            digests(manifest.layers, false).chain(digests(vec![manifest.config], false)).collect(),
        ));
    }
    match Index::from_json(&document) {
        Ok(index) => Ok(Some(digests(index.manifests, true).collect())),
        Err(error) => {
            // Nobody can use what it names, as nobody can read it.
            tracing::warn!(%digest, %error, "an image's manifest cannot be read");
            Ok(Some(Vec::new()))
        }
    }
}
