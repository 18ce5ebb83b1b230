//! A full disk gives errors, loses nothing, and leaves a store that opens and works again once there is room.

use std::{fs, io::Write, path::Path};

use lapstrake_layerstore_conformance::fixture::name;
use lapstrake_layerstore_oci::Digest;
use lapstrake_layerstore_store::{Collector, ImageStore, LocalStore, NewImage, StoreError};
use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};

use crate::common::{image, layer, open};

/// A small file system of its own; gone when dropped.
struct SmallDisk(tempfile::TempDir);

impl SmallDisk {
    fn new(size: &str) -> Self {
        let directory = tempfile::tempdir().expect("temporary directory");
        let options = std::ffi::CString::new(format!("size={size}")).expect("no zero byte");
        mount("tmpfs", directory.path(), "tmpfs", MountFlags::empty(), options.as_c_str())
            .expect("mount (as root)");
        Self(directory)
    }

    fn root(&self) -> &Path {
        self.0.path()
    }

    /// Fills it to the last byte; the file returned is the room.
    fn fill(&self) -> std::path::PathBuf {
        let path = self.root().join("ballast");
        let mut file = fs::File::create(&path).expect("create");
        for size in [1 << 16, 1 << 12, 1] {
            let bytes = vec![1; size];
            while file.write_all(&bytes).is_ok() {}
        }
        path
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = unmount(self.root(), UnmountFlags::DETACH);
    }
}

#[test]
fn a_full_disk_fails_writes_and_loses_nothing() {
    let disk = SmallDisk::new("8m");
    let root = disk.root().join("store");
    let (id, ballast) = {
        let (_store, stores) = open(&root);
        let base = layer(&stores, None, "base").expect("layer");
        let image_with_name = NewImage { names: vec![name("app:1")], ..image("one", &[&base]) };
        let id = stores.images.put(image_with_name).expect("put");
        let kept = stores.content.write_small(b"kept").expect("write");

        let ballast = disk.fill();
        let mut writer = stores.content.writer().expect("writer");
        let large = vec![9; 1 << 20];
        let refused = writer.write_all(&large).is_err() || writer.commit(None, None).is_err();
        assert!(refused, "a blob larger than the room");
        assert_eq!(stores.content.info(&Digest::sha256_of(&large)).expect("info"), None);
        // The database needs pages of its own: at some point it has none, and says so.
        let failed = (0..1000).find_map(|n| {
            let image =
                NewImage { names: vec![name(&format!("app:{n}"))], ..image(&format!("{n}"), &[&base]) };
            stores.images.put(image).err()
        });
        assert!(matches!(failed, Some(StoreError::Metadata { .. } | StoreError::Io { .. })), "{failed:?}");
        // Reading goes on.
        assert_eq!(stores.images.find(id.as_str()).expect("find").id, id);
        assert_eq!(stores.content.read_small(&kept, 10).expect("read"), b"kept");
        (id, ballast)
    };

    fs::remove_file(ballast).expect("make room");
    let (store, stores) = open(&root);
    store.metadata.check().expect("well-formed");
    assert_eq!(stores.images.find(id.as_str()).expect("find").id, id);
    let list = stores.images.list().expect("list");
    assert!(list.iter().all(|image| image.id == id || image.names.len() == 1), "no image without its name");
    Collector::new(stores.clone(), Vec::new()).collect_at_start(&store.metadata).expect("collect");
    stores.images.put(image("another", &[])).expect("put");
}

#[test]
fn a_disk_that_is_still_full_is_no_damage() {
    let disk = SmallDisk::new("8m");
    let root = disk.root().join("store");
    let id = {
        let (_store, stores) = open(&root);
        let base = layer(&stores, None, "base").expect("layer");
        stores.images.put(image("one", &[&base])).expect("put")
    };
    let ballast = disk.fill();
    // Opening needs a page or two for the log's index, and may have to do without.
    match LocalStore::open(&root) {
        Ok(store) => assert!(store.images.get(&id).expect("get").is_some()),
        Err(StoreError::Metadata { .. } | StoreError::Io { .. }) => {}
        Err(error) => panic!("{error}"),
    }
    fs::remove_file(ballast).expect("make room");
    let (_store, stores) = open(&root);
    assert!(stores.images.get(&id).expect("get").is_some());
}
