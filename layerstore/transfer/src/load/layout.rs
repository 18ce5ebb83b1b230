//! An OCI image layout's `index.json`.

use std::collections::BTreeSet;

use bytes::Bytes;
use lapstrake_layerstore_oci::{
    Descriptor, Digest, ImageId, Index, Manifest, MediaType, Platform, PlatformMatcher, Reference,
};
use lapstrake_layerstore_store::Stores;
use serde::Deserialize;

use super::{Archive, MAX_DOCUMENT, Planned, PlannedLayer, Stored, config};
use crate::TransferError;

/// Indexes within indexes followed.
const MAX_NESTING: usize = 4;
/// The version of layouts that this reads.
const VERSION: &str = "1.0.0";

#[derive(Deserialize)]
struct Layout {
    #[serde(rename = "imageLayoutVersion")]
    version: String,
}

/// What the archive's `index.json` says. Of the manifests that name a platform, those that fit are taken.
pub(super) fn plan(
    stores: &Stores,
    archive: &Archive,
    platforms: &[Platform],
) -> Result<Vec<Planned>, TransferError> {
    if archive.find(b"oci-layout").is_some() {
        let bytes = archive.get("oci-layout")?.document(stores, "oci-layout", MAX_DOCUMENT)?;
        let layout: Layout = serde_json::from_slice(&bytes)
            .map_err(|error| TransferError::archive(format!("failed to decode oci-layout: {error}")))?;
        if layout.version != VERSION {
            return Err(TransferError::archive(format!(
                "unknown version {:.64} of OCI layouts",
                layout.version
            )));
        }
    }
    let bytes = archive.get("index.json")?.document(stores, "index.json", MAX_DOCUMENT)?;
    let index = Index::from_json(&bytes).map_err(TransferError::document("invalid archive: index.json"))?;
    let host = [Platform::host()];
    let wanted = if platforms.is_empty() { &host } else { platforms };
    let is_asked = !platforms.is_empty();
    let mut reader = Reader { stores, archive, is_asked, planned: Vec::new() };
    for descriptor in fitting(&index.manifests, wanted) {
        let name = name_of(descriptor);
        for wanted in wanted {
            reader.follow(descriptor, wanted, name.as_ref())?;
            if !descriptor.media_type.is_index() {
                break;
            }
        }
    }
    Ok(reader.planned)
}

/// The manifests of the outer index: all, unless platforms are named and some fit.
fn fitting<'a>(manifests: &'a [Descriptor], wanted: &[Platform]) -> Vec<&'a Descriptor> {
    let fits = |descriptor: &&Descriptor| {
        descriptor.platform.as_ref().is_none_or(|platform| {
            wanted.iter().any(|wanted| PlatformMatcher::only(wanted).matches(platform))
        })
    };
    let fit: Vec<&Descriptor> = manifests.iter().filter(fits).collect();
    if fit.is_empty() { manifests.iter().collect() } else { fit }
}

/// The name that whoever wrote the layout gave a manifest: containerd's annotation, or OCI's where it is more than a tag.
pub(super) fn name_of(descriptor: &Descriptor) -> Option<Reference> {
    let containerd = descriptor.annotations.get("io.containerd.image.name");
    let oci = descriptor
        .annotations
        .get("org.opencontainers.image.ref.name")
        .filter(|name| name.contains([':', '/']));
    let name = Reference::parse(containerd.or(oci)?).ok()?.with_default_tag();
    // A digest is not a name to give: what has it is known by its content.
    name.tag().is_some().then_some(name)
}

struct Reader<'a> {
    stores: &'a Stores,
    archive: &'a Archive,
    /// Whether platforms were asked for: then another one is no answer.
    is_asked: bool,
    planned: Vec<Planned>,
}

impl Reader<'_> {
    /// Follows a descriptor to the manifest for a platform.
    fn follow(
        &mut self,
        descriptor: &Descriptor,
        platform: &Platform,
        name: Option<&Reference>,
    ) -> Result<(), TransferError> {
        let mut descriptor = descriptor.clone();
        for _ in 0..MAX_NESTING {
            let bytes = self.document(&descriptor)?;
            if !is_index(&descriptor.media_type, &bytes) {
                return self.image(&descriptor, bytes, name);
            }
            let index = Index::from_json(&bytes)
                .map_err(TransferError::document(format!("invalid archive: index {}", descriptor.digest)))?;
            let nameless = || index.manifests.iter().find(|manifest| manifest.platform.is_none());
            let first = || index.manifests.iter().find(|manifest| !self.is_asked && is_image(manifest));
            let chosen =
                PlatformMatcher::only(platform).choose(&index.manifests).or_else(nameless).or_else(first);
            descriptor = chosen.cloned().ok_or_else(|| {
                TransferError::archive(format!("index {} has no manifest for {platform}", descriptor.digest))
            })?;
        }
        Err(TransferError::archive("indexes are nested too deeply"))
    }

    fn image(
        &mut self,
        descriptor: &Descriptor,
        bytes: Bytes,
        name: Option<&Reference>,
    ) -> Result<(), TransferError> {
        let manifest = Manifest::from_json(&bytes)
            .map_err(TransferError::document(format!("invalid archive: manifest {}", descriptor.digest)))?;
        if !manifest.config.media_type.is_config() {
            let what = &manifest.config.media_type;
            return Err(TransferError::archive(format!(
                "manifest {} is not an image's but of {what:.128}",
                descriptor.digest
            )));
        }
        let config_bytes = self.document(&manifest.config)?;
        let id = ImageId(manifest.config.digest.clone());
        // Several names of one image are several descriptors of one manifest.
        if let Some(known) = self.planned.iter_mut().find(|image| image.id == id) {
            known.names.extend(name.filter(|name| !known.names.contains(name)).cloned());
            return Ok(());
        }
        let document = config(&id, &config_bytes, manifest.layers.len())?;
        let mut layers = Vec::with_capacity(manifest.layers.len());
        let mut verified = BTreeSet::new();
        for (layer, diff_id) in manifest.layers.iter().zip(&document.rootfs.diff_ids) {
            let file = self.blob(layer, verified.insert(&layer.digest))?;
            layers.push(PlannedLayer { diff_id: diff_id.clone(), file });
        }
        self.planned.push(Planned {
            id,
            config: config_bytes,
            layers,
            names: name.cloned().into_iter().collect(),
            parent: None,
            manifest: Some((manifest, bytes)),
        });
        Ok(())
    }

    fn document(&self, descriptor: &Descriptor) -> Result<Bytes, TransferError> {
        self.blob(descriptor, true)?.document(self.stores, descriptor.digest.as_str(), MAX_DOCUMENT)
    }

    fn blob(&self, descriptor: &Descriptor, verify: bool) -> Result<Stored, TransferError> {
        blob(self.stores, self.archive, descriptor, verify)
    }
}

/// Where a layout has a blob.
pub(super) fn blob_path(digest: &Digest) -> String {
    format!("blobs/{}/{}", digest.algorithm(), digest.hex())
}

/// A blob of the layout, with the bytes that its name promises.
pub(super) fn blob(
    stores: &Stores,
    archive: &Archive,
    descriptor: &Descriptor,
    verify: bool,
) -> Result<Stored, TransferError> {
    let Descriptor { digest, size, .. } = descriptor;
    let path = blob_path(digest);
    let stored = archive.get(&path)?;
    if stored.size() != *size {
        let actual = stored.size();
        return Err(TransferError::archive(format!("{path} has {actual} bytes, and should have {size}")));
    }
    if verify && !stored.is(stores, digest)? {
        return Err(TransferError::archive(format!("{path} has another digest: {}", stored.digest())));
    }
    Ok(stored.clone())
}

/// Whether an index' entry is an image's manifest, and nothing about one.
fn is_image(entry: &Descriptor) -> bool {
    entry.media_type.is_manifest()
        && entry.artifact_type.is_none()
        && entry.platform.as_ref().is_some_and(|platform| platform.os != "unknown")
}

/// What a document is: its descriptor's word, or what it looks like where that says nothing.
fn is_index(media_type: &MediaType, bytes: &[u8]) -> bool {
    if media_type.is_index() || media_type.is_manifest() {
        return media_type.is_index();
    }
    Index::from_json(bytes).is_ok_and(|index| !index.manifests.is_empty())
}
