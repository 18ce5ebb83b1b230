//! Stores in a temporary directory, images made by hand, and what trees look like.

use std::{
    collections::BTreeMap,
    fs,
    io::Write,
    os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt},
    path::Path,
    sync::{Arc, Mutex},
};

use lapstrake_graphdriver_adapter::{Adapter, DriverKind};
use lapstrake_layerstore_oci::{History, ImageConfig, ImageId, Platform, Reference, Timestamp};
use lapstrake_layerstore_store::{ImageName, ImageRecord, LocalStore, NewImage, OpenSnapshot, Stores, Tree};
use lapstrake_layerstore_transfer::{
    HeldImages, LoadEvent, Loaded, SaveImage, TransferError, layers, load, save,
};
use tokio_util::sync::CancellationToken;

/// A machine's stores.
pub(crate) struct Machine {
    pub(crate) stores: Stores,
    pub(crate) dir: tempfile::TempDir,
}

impl Machine {
    pub(crate) fn new() -> Self {
        Self::with_driver(DriverKind::Overlay2)
    }

    pub(crate) fn with_driver(kind: DriverKind) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let local = LocalStore::open(dir.path()).unwrap();
        let snapshots = Adapter::new(kind.open(dir.path()).unwrap(), local.records.clone());
        let stores = local.stores(Arc::new(snapshots));
        Self { stores, dir }
    }

    /// A tree made of its parent by `write`, which gets a path to it.
    pub(crate) fn tree(&self, parent: &Tree, write: impl FnOnce(&Path)) -> Tree {
        let draft = self.stores.begin(parent).unwrap();
        let open = draft.open().unwrap();
        write(&open.path());
        drop(open);
        draft.commit().unwrap()
    }

    pub(crate) fn image(&self, tree: &Tree, names: &[&str]) -> ImageRecord {
        let layers = layers(&self.stores, tree).unwrap();
        let mut config = ImageConfig::for_platform(&Platform::host());
        config.created = Some(Timestamp::parse("2024-05-06T07:08:09.123456789Z").unwrap());
        config.config.cmd = Some(vec!["/bin/sh".to_owned()]);
        config.config.env = vec!["A=<b>&".to_owned()];
        config.rootfs.diff_ids = layers.iter().map(|layer| layer.diff_id.clone()).collect();
        config.history = layers
            .iter()
            .map(|_| History { created_by: "a test".to_owned(), ..History::default() })
            .collect();
        let id = self
            .stores
            .images
            .put(NewImage {
                config: config.to_json().unwrap(),
                top: tree.snapshot().cloned(),
                diff_ids: config.rootfs.diff_ids,
                parent: None,
                manifest: None,
                names: names.iter().map(|name| image_name(name)).collect(),
            })
            .unwrap();
        self.record(&id)
    }

    pub(crate) fn record(&self, id: &ImageId) -> ImageRecord {
        self.stores.images.get(id).unwrap().expect("stored")
    }

    pub(crate) fn find(&self, name: &str) -> ImageRecord {
        self.stores.images.find(name).unwrap()
    }

    pub(crate) fn save(&self, images: &[&ImageRecord]) -> Vec<u8> {
        let images: Vec<SaveImage> = images
            .iter()
            .map(|record| SaveImage {
                record: (*record).clone(),
                names: record
                    .names
                    .iter()
                    .map(|name| name.reference.clone())
                    .filter(|name| name.tag().is_some())
                    .collect(),
            })
            .collect();
        let images = HeldImages::new(&self.stores, &images).unwrap();
        let mut out = Vec::new();
        save(&self.stores, &images, &mut out, &CancellationToken::new()).unwrap();
        out
    }

    pub(crate) fn load(&self, archive: &[u8]) -> Result<Vec<Loaded>, TransferError> {
        self.load_with_lines(archive).map(|(loaded, _)| loaded)
    }

    /// Loads an archive, with what Docker would print.
    pub(crate) fn load_with_lines(
        &self,
        archive: &[u8],
    ) -> Result<(Vec<Loaded>, Vec<String>), TransferError> {
        let lines = Mutex::new(Vec::new());
        let report = |event: LoadEvent| lines.lock().unwrap().extend(event.docker_line());
        let loaded = load(&self.stores, archive, &[], &CancellationToken::new(), &report)?;
        Ok((loaded, lines.into_inner().unwrap()))
    }

    pub(crate) fn open(&self, record: &ImageRecord) -> OpenSnapshot {
        let tree = self.stores.hold(record.top.as_ref().expect("layers")).unwrap().expect("there");
        self.stores.open(&tree).unwrap().expect("not empty")
    }

    /// What an image's files look like: a line for each.
    pub(crate) fn files(&self, record: &ImageRecord) -> BTreeMap<String, String> {
        let open = self.open(record);
        let mut found = BTreeMap::new();
        look(&open.path(), "", &mut found);
        found
    }

    pub(crate) fn blobs(&self) -> usize {
        let mut count = 0;
        self.stores
            .content
            .walk(&mut |_| {
                count += 1;
                true
            })
            .unwrap();
        count
    }
}

pub(crate) fn image_name(name: &str) -> ImageName {
    ImageName { reference: reference(name), target: None }
}

pub(crate) fn reference(name: &str) -> Reference {
    Reference::parse(name).unwrap().with_default_tag()
}

fn look(directory: &Path, below: &str, found: &mut BTreeMap<String, String>) {
    for entry in fs::read_dir(directory).unwrap() {
        let entry = entry.unwrap();
        let name = format!("{below}/{}", entry.file_name().to_string_lossy());
        let metadata = fs::symlink_metadata(entry.path()).unwrap();
        let kind = metadata.file_type();
        let what = if kind.is_symlink() {
            format!("-> {}", fs::read_link(entry.path()).unwrap().display())
        } else if kind.is_file() {
            format!(
                "{} links {:?}",
                metadata.nlink(),
                String::from_utf8_lossy(&fs::read(entry.path()).unwrap())
            )
        } else if kind.is_dir() {
            "directory".to_owned()
        } else {
            format!("other, pipe {}", kind.is_fifo())
        };
        let line = format!(
            "{:o} {}:{} {} {what}",
            metadata.permissions().mode() & 0o7777,
            metadata.uid(),
            metadata.gid(),
            metadata.mtime()
        );
        found.insert(name.clone(), line);
        if kind.is_dir() {
            look(&entry.path(), &name, found);
        }
    }
}

/// A tree of three layers with everything that layers can say: modes, owners, hard links, symlinks, a deleted file, a directory that was made
/// anew.
pub(crate) fn rich(machine: &Machine) -> Tree {
    let base = machine.tree(&Tree::empty(), |root| {
        fs::create_dir_all(root.join("etc/opaque")).unwrap();
        fs::create_dir(root.join("bin")).unwrap();
        fs::write(root.join("etc/opaque/old"), "old").unwrap();
        fs::write(root.join("etc/deleted"), "gone soon").unwrap();
        fs::write(root.join("bin/tool"), "#!/bin/sh\n").unwrap();
        fs::set_permissions(root.join("bin/tool"), fs::Permissions::from_mode(0o4755)).unwrap();
        fs::hard_link(root.join("bin/tool"), root.join("bin/alias")).unwrap();
        std::os::unix::fs::symlink("bin/tool", root.join("link")).unwrap();
    });
    let middle = machine.tree(&base, |root| {
        fs::remove_file(root.join("etc/deleted")).unwrap();
        fs::remove_dir_all(root.join("etc/opaque")).unwrap();
        fs::create_dir(root.join("etc/opaque")).unwrap();
        fs::write(root.join("etc/opaque/new"), "new").unwrap();
        std::os::unix::fs::chown(root.join("etc/opaque/new"), Some(123), Some(456)).unwrap();
    });
    machine.tree(&middle, |root| {
        fs::write(root.join("large"), vec![b'x'; 5 << 20]).unwrap();
        fs::create_dir(root.join("empty")).unwrap();
    })
}

/// A tar archive of these files.
pub(crate) fn tar(files: &[(&str, &[u8])]) -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    for (name, content) in files {
        append(&mut builder, name, tar::EntryType::Regular, "", content);
    }
    builder.into_inner().unwrap()
}

/// Adds an entry whatever its name.
pub(crate) fn append(
    builder: &mut tar::Builder<Vec<u8>>,
    name: &str,
    kind: tar::EntryType,
    link: &str,
    content: &[u8],
) {
    let mut header = tar::Header::new_gnu();
    header.as_old_mut().name[..name.len()].copy_from_slice(name.as_bytes());
    header.as_old_mut().linkname[..link.len()].copy_from_slice(link.as_bytes());
    header.set_entry_type(kind);
    header.set_mode(0o644);
    header.set_size(content.len() as u64);
    header.set_cksum();
    builder.append(&header, content).unwrap();
}

/// The entries of an archive in order: name and content.
pub(crate) fn entries(archive: &[u8]) -> Vec<(String, Vec<u8>)> {
    let mut archive = tar::Archive::new(archive);
    let entries = archive.entries().unwrap();
    entries
        .map(|entry| {
            let mut entry = entry.unwrap();
            let name = entry.path().unwrap().display().to_string();
            let mut content = Vec::new();
            std::io::Read::read_to_end(&mut entry, &mut content).unwrap();
            (name, content)
        })
        .collect()
}

pub(crate) fn file(archive: &[u8], name: &str) -> Vec<u8> {
    let found = entries(archive).into_iter().find(|entry| entry.0 == name);
    found.unwrap_or_else(|| panic!("{name} is not in the archive")).1
}

/// An image config for layers.
pub(crate) fn config(diff_ids: &[lapstrake_layerstore_oci::DiffId]) -> Vec<u8> {
    let mut config = ImageConfig::for_platform(&Platform::host());
    config.rootfs.diff_ids = diff_ids.to_vec();
    config.to_json().unwrap()
}

pub(crate) fn gzip(data: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(data).unwrap();
    encoder.finish().unwrap()
}

/// An error with what it came of.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(source) = next {
        text = format!("{text}: {source}");
        next = source.source();
    }
    text
}
