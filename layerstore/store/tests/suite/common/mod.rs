//! A small snapshotter for these tests: a plain directory per snapshot, with the changes alone in it. Its records are the
//! local store's own; graph drivers proper are tested in their own crate.

use std::{
    collections::HashSet,
    fs, io,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    sync::Arc,
    time::SystemTime,
};

use lapstrake_layerstore_conformance::fixture::bare;
use lapstrake_layerstore_oci::{ChainId, Descriptor, DiffId, Digest, Manifest, MediaType};
use lapstrake_layerstore_store::{
    DiffSource, Layer, Leftovers, LocalStore, NewImage, SnapshotId, SnapshotInfo, SnapshotKey, SnapshotKind,
    SnapshotMount, SnapshotName, SnapshotRecord, SnapshotRecords, Snapshotter, StoreError, Stores, Usage,
};

pub(crate) struct PlainTrees {
    root: PathBuf,
    records: Arc<dyn SnapshotRecords>,
}

impl PlainTrees {
    /// Removes directories without a record, as every snapshotter does when it starts.
    pub(crate) fn open(store: &LocalStore) -> Self {
        let trees = Self { root: store.root().join("plain"), records: store.records.clone() };
        fs::create_dir_all(&trees.root).expect("create");
        let known = trees.records.ids().expect("ids");
        for entry in fs::read_dir(&trees.root).expect("list") {
            let path = entry.expect("entry").path();
            let id = SnapshotId::new(path.file_name().expect("name").to_str().expect("text"));
            if !known.contains(&id) {
                fs::remove_dir_all(path).expect("remove orphan");
            }
        }
        trees
    }

    fn path(&self, id: &SnapshotId) -> PathBuf {
        self.root.join(id.as_str())
    }

    fn start(&self, kind: SnapshotKind, parent: Option<&SnapshotName>) -> Result<SnapshotMount, StoreError> {
        let id = SnapshotId::random();
        let source = self.path(&id);
        fs::create_dir(&source).map_err(StoreError::io("create", &source))?;
        let record =
            SnapshotRecord { id, kind, parent: parent.cloned(), created: SystemTime::now(), usage: None };
        if let Err(error) = self.records.insert(&record) {
            fs::remove_dir(&source).map_err(StoreError::io("remove", &source))?;
            return Err(error);
        }
        Ok(SnapshotMount::Bind { source, read_only: false })
    }

    fn mount(&self, record: &SnapshotRecord) -> SnapshotMount {
        SnapshotMount::Bind { source: self.path(&record.id), read_only: false }
    }

    fn delete(&self, record: &SnapshotRecord) -> Result<(), StoreError> {
        let path = self.path(&record.id);
        fs::remove_dir_all(&path).map_err(StoreError::io("delete", path))
    }
}

fn measure(path: &Path) -> io::Result<Usage> {
    let metadata = fs::symlink_metadata(path)?;
    let mut usage = Usage { bytes: metadata.blocks() * 512, inodes: 1 };
    if metadata.is_dir() {
        for entry in fs::read_dir(path)? {
            let below = measure(&entry?.path())?;
            usage.bytes += below.bytes;
            usage.inodes += below.inodes;
        }
    }
    Ok(usage)
}

impl Snapshotter for PlainTrees {
    fn prepare(&self, key: &SnapshotKey, parent: Option<&SnapshotName>) -> Result<SnapshotMount, StoreError> {
        self.start(SnapshotKind::Active(key.clone()), parent)
    }
    fn view(&self, key: &SnapshotKey, parent: Option<&SnapshotName>) -> Result<SnapshotMount, StoreError> {
        self.start(SnapshotKind::View(key.clone()), parent)
    }
    fn mounts(&self, key: &SnapshotKey) -> Result<SnapshotMount, StoreError> {
        Ok(self.mount(&self.records.by_key(key)?))
    }
    fn commit(&self, key: &SnapshotKey, name: &SnapshotName) -> Result<(), StoreError> {
        self.records.commit(key, name)
    }
    fn committed_mount(&self, name: &SnapshotName) -> Result<SnapshotMount, StoreError> {
        Ok(self.mount(&self.records.by_name(name)?))
    }
    fn diff_source(&self, name: &SnapshotName) -> Result<DiffSource, StoreError> {
        Ok(DiffSource::Trees {
            lower: None,
            upper: self.path(&self.records.by_name(name)?.id),
            deletions: None,
        })
    }
    fn active_diff(&self, key: &SnapshotKey) -> Result<DiffSource, StoreError> {
        Ok(DiffSource::Trees {
            lower: None,
            upper: self.path(&self.records.by_key(key)?.id),
            deletions: None,
        })
    }
    fn stat(&self, name: &SnapshotName) -> Result<SnapshotInfo, StoreError> {
        Ok(self.records.by_name(name)?.info())
    }
    fn stat_key(&self, key: &SnapshotKey) -> Result<SnapshotInfo, StoreError> {
        Ok(self.records.by_key(key)?.info())
    }
    fn set_created(&self, name: &SnapshotName, created: SystemTime) -> Result<(), StoreError> {
        self.records.set_created(name, created)
    }
    fn usage(&self, name: &SnapshotName) -> Result<Usage, StoreError> {
        let record = self.records.by_name(name)?;
        if let Some(usage) = record.usage {
            return Ok(usage);
        }
        let path = self.path(&record.id);
        let usage = measure(&path).map_err(StoreError::io("measure", path))?;
        self.records.set_usage(name, usage)
    }
    fn usage_key(&self, key: &SnapshotKey) -> Result<Usage, StoreError> {
        let path = self.path(&self.records.by_key(key)?.id);
        measure(&path).map_err(StoreError::io("measure", path))
    }
    fn remove(&self, name: &SnapshotName) -> Result<(), StoreError> {
        self.delete(&self.records.remove(name)?)
    }
    fn remove_key(&self, key: &SnapshotKey) -> Result<(), StoreError> {
        self.delete(&self.records.remove_key(key)?)
    }
    fn forget(&self, keys: &[SnapshotKey], names: &[SnapshotName]) -> Result<Leftovers, StoreError> {
        let mut leftovers = Leftovers::none();
        for gone in self.records.forget(keys, names)? {
            let path = self.path(&gone.id);
            leftovers.push(move || {
                let freed = measure(&path).map_err(StoreError::io("measure", &path))?;
                fs::remove_dir_all(&path).map_err(StoreError::io("delete", path))?;
                Ok(freed)
            });
        }
        Ok(leftovers)
    }
    fn share(&self, key: &SnapshotKey, with: &SnapshotName, usage: Usage) -> Result<(), StoreError> {
        self.records.share(key, with, usage)
    }
    fn shared_below(&self, _key: &SnapshotKey) -> Result<HashSet<u64>, StoreError> {
        // Nobody links here.
        Ok(HashSet::new())
    }
    fn walk(&self, visit: &mut dyn FnMut(SnapshotInfo) -> bool) -> Result<(), StoreError> {
        self.records.all()?.iter().map(SnapshotRecord::info).all(visit);
        Ok(())
    }
    fn sync(&self) -> Result<(), StoreError> {
        Ok(())
    }
}

/// Opens the store at `root` with its trees.
pub(crate) fn open(root: &Path) -> (LocalStore, Stores) {
    let store = LocalStore::open(root).expect("open");
    let stores = store.stores(Arc::new(PlainTrees::open(&store)));
    (store, stores)
}

/// A committed snapshot with one file of `text`, recorded as a layer.
pub(crate) fn layer(stores: &Stores, parent: Option<&Layer>, text: &str) -> Result<Layer, StoreError> {
    let (key, name) = (SnapshotKey::random(), SnapshotName::random());
    let mount = stores.snapshots.prepare(&key, parent.map(|parent| &parent.snapshot))?;
    let SnapshotMount::Bind { source, .. } = mount else { panic!("a plain directory") };
    let file = source.join("file");
    fs::write(&file, text).map_err(StoreError::io("write", file))?;
    stores.snapshots.commit(&key, &name)?;
    let diff_id = DiffId(Digest::sha256_of(text));
    let chain_id = match parent {
        Some(parent) => parent.chain_id.extend(&diff_id),
        None => ChainId(diff_id.0.clone()),
    };
    let layer = Layer { snapshot: name, diff_id, chain_id, size: text.len() as u64 };
    stores.layers.record(std::slice::from_ref(&layer))?;
    Ok(layer)
}

/// An image with these layers, bottom first, not put yet.
pub(crate) fn image(text: &str, layers: &[&Layer]) -> NewImage {
    NewImage {
        top: layers.last().map(|layer| layer.snapshot.clone()),
        ..bare(text, layers.iter().map(|layer| layer.diff_id.clone()).collect())
    }
}

pub(crate) fn descriptor(media_type: &str, digest: &Digest, size: usize) -> Descriptor {
    let document = format!(r#"{{"mediaType":"{media_type}","digest":"{digest}","size":{size}}}"#);
    serde_json::from_str(&document).expect("a descriptor")
}

/// A blob of `text`, described as a compressed layer.
pub(crate) fn layer_blob(stores: &Stores, text: &str) -> Descriptor {
    let digest = stores.content.write_small(text.as_bytes()).expect("write");
    descriptor("application/vnd.oci.image.layer.v1.tar+gzip", &digest, text.len())
}

/// A manifest in the content store that refers to a config of `config` and these layers.
pub(crate) fn manifest(stores: &Stores, config: &str, layers: Vec<Descriptor>) -> Descriptor {
    let digest = stores.content.write_small(config.as_bytes()).expect("write");
    let config = descriptor("application/vnd.oci.image.config.v1+json", &digest, config.len());
    let media_type = "application/vnd.oci.image.manifest.v1+json";
    let document = Manifest::new(MediaType::new(media_type), config, layers).to_json().expect("JSON");
    let digest = stores.content.write_small(&document).expect("write");
    descriptor(media_type, &digest, document.len())
}

/// Bytes that a directory and all below it take on disk, by itself.
pub(crate) fn on_disk(path: &Path) -> u64 {
    measure(path).expect("measure").bytes
}
