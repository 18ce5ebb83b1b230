//! The image store contract, with Moby's meaning of names, ids and deletion.
//!
//! An image's id is the digest of its config. A name is a tagged reference (`docker.io/library/app:1`) or a digested one
//! (`docker.io/library/app@sha256:…`, which pulls and pushes leave behind). Names point at images; an image without a
//! tagged name is *dangling*.

use std::time::SystemTime;

use lapstrake_layerstore_oci::{AnyReference, Descriptor, DiffId, Digest, ImageId, Reference};

use crate::{SnapshotName, StoreError};

/// One name of an image: a reference that has a tag or a digest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ImageName {
    /// The reference, normalised, with a tag or a digest.
    pub reference: Reference,
    /// What the name was pulled or pushed as (manifest or index), or `None` for an image only ever named here.
    pub target: Option<Descriptor>,
}

/// The repository whose digested names keep indexes that nobody gave a name, as in Docker's containerd store.
const NAMELESS: &str = "docker.io/library/moby-dangling";

impl ImageName {
    /// The names that keep an index with all that it names: those given, and its digest in each of their repositories, which stays when a tag moves on.
    /// Without names it is a digest that nobody is shown ([`Self::is_nameless`]).
    pub fn of_index(names: &[Reference], index: &Descriptor) -> Vec<Self> {
        let named = |reference: Reference| Self { reference, target: Some(index.clone()) };
        let digested = |name: &Reference| named(name.clone().trimmed().with_digest(index.digest.clone()));
        if names.is_empty() {
            return vec![digested(&Reference::parse(NAMELESS).expect("it is a name"))];
        }
        let mut all: Vec<Self> = Vec::with_capacity(2 * names.len());
        for name in names {
            let digested = digested(name);
            if !all.contains(&digested) {
                all.push(digested);
            }
            all.push(named(name.clone()));
        }
        all
    }

    /// Whether it stands for no name, and only keeps an index.
    pub fn is_nameless(&self) -> bool {
        self.reference.name() == NAMELESS
    }
}

/// An image as the store knows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ImageRecord {
    /// Digest of the config.
    pub id: ImageId,
    /// The config's exact bytes.
    pub config: Vec<u8>,
    /// The snapshot of its top layer; `None` for an image without layers.
    pub top: Option<SnapshotName>,
    /// Its layers' diff ids, bottom first.
    pub diff_ids: Vec<DiffId>,
    /// The image that it was made from, where known (classic parent chain).
    pub parent: Option<ImageId>,
    /// A manifest that names this config, when one was pulled, loaded or made.
    pub manifest: Option<Digest>,
    /// When it was stored here first.
    pub stored: SystemTime,
    /// When a name was last put on it.
    pub last_tagged: Option<SystemTime>,
    /// Its names.
    pub names: Vec<ImageName>,
}

impl ImageRecord {
    /// Whether no tagged name points at it.
    pub fn is_dangling(&self) -> bool {
        self.names.iter().all(|name| name.reference.tag().is_none())
    }

    /// The index that it has under a name: that of several platforms' images, which need not all be here. Of a reference with tag and digest, the digest
    /// counts.
    pub fn index_of(&self, reference: &Reference) -> Option<&Descriptor> {
        let key = match reference.digest() {
            Some(digest) => reference.clone().trimmed().with_digest(digest.clone()),
            None => reference.clone().with_default_tag(),
        };
        let name = self.names.iter().find(|name| name.reference == key)?;
        name.target.as_ref().filter(|target| target.media_type.is_index())
    }

    /// The index that a person means who named the image so: by a name, or by the index' own digest.
    pub fn index_meant(&self, text: &str) -> Option<&Descriptor> {
        match Reference::parse_any(text).ok()? {
            AnyReference::Name(reference) => self.index_of(&reference),
            AnyReference::Digest(digest) => {
                let targets = self.names.iter().filter_map(|name| name.target.as_ref());
                targets.filter(|target| target.media_type.is_index()).find(|target| target.digest == digest)
            }
        }
    }
}

/// An image to store.
#[derive(Debug, Clone)]
pub struct NewImage {
    /// The config's exact bytes; its digest becomes the image's id.
    pub config: Vec<u8>,
    /// The snapshot of its top layer.
    pub top: Option<SnapshotName>,
    /// Its layers' diff ids, bottom first; those in the config.
    pub diff_ids: Vec<DiffId>,
    /// The image that it was made from, where known.
    pub parent: Option<ImageId>,
    /// A manifest in the content store that names this config.
    pub manifest: Option<Digest>,
    /// Names to put on it, taken from whatever had them.
    pub names: Vec<ImageName>,
}

/// What [`ImageStore::delete_image`] did, in order, for `docker rmi`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum DeletedImage {
    /// A name went.
    Untagged(Reference),
    /// An image went.
    Deleted(ImageId),
}

/// Images and their names. Methods block and are transactions: each happens whole or not at all.
pub trait ImageStore: Send + Sync {
    /// Stores an image and puts its names on it, in one transaction. Storing an image that exists adds the names
    /// (and the manifest, when it had none).
    ///
    /// The caller holds a lease on the snapshot and the manifest, and has made them durable ([`crate::Snapshotter::sync`]).
    ///
    /// Errors: [`StoreError::NotFound`] naming a snapshot, parent or manifest that is not there; [`StoreError::Malformed`]
    /// when the config is not one; [`StoreError::Invalid`] when the diff ids are not the config's, or not those of the snapshot, or a name
    /// has neither tag nor digest.
    fn put(&self, image: NewImage) -> Result<ImageId, StoreError>;

    /// The image with this id, or `None`.
    fn get(&self, id: &ImageId) -> Result<Option<ImageRecord>, StoreError>;

    /// The image that a person means: a name (tag `latest` when none), a digested name, `sha256:<hex>`, or an unambiguous
    /// prefix of an id. Names win over ids, as in Moby. A digest that is no image's id may be that of what a name was built, pulled or
    /// pushed as.
    ///
    /// Errors: [`StoreError::NotFound`], [`StoreError::Ambiguous`], [`StoreError::Malformed`].
    fn find(&self, text: &str) -> Result<ImageRecord, StoreError>;

    /// All images, newest stored first.
    fn list(&self) -> Result<Vec<ImageRecord>, StoreError>;

    /// Puts a name on an image, taking it from whatever had it. Of a name with tag and digest, only the digest counts.
    ///
    /// Errors: [`StoreError::NotFound`], [`StoreError::Invalid`] when it has neither.
    fn tag(&self, id: &ImageId, name: &ImageName) -> Result<(), StoreError>;

    /// Takes a name away; the image stays. Errors: [`StoreError::NotFound`].
    fn untag(&self, reference: &Reference) -> Result<ImageId, StoreError>;

    /// Removes an image and all its names. Its layers stay until collected.
    /// Errors: [`StoreError::NotFound`]; [`StoreError::InUse`] while a lease holds it.
    /// It waits for lookups to end, so never call it inside [`crate::Leases::guard`].
    fn delete_image(&self, id: &ImageId) -> Result<Vec<DeletedImage>, StoreError>;

    /// Images whose `parent` is this one.
    fn children(&self, id: &ImageId) -> Result<Vec<ImageId>, StoreError>;
}
