//! An image in the store, in registries, or both.
//!
//! In the store, nothing is compressed before something needs it: an image of one platform is its config, its tree and its names. It is *written*
//! ([`crate::written`]) when somebody asks for its manifest, or pushes it, or when it is an index.
//!
//! Order: files and blobs are durable; then, in one transaction, the image and its names, which keep the manifest, or the index and all that it names. What a
//! registry gets, it gets as it is made; the manifests, which make it seen, last, when all outputs of the build are made.

use std::sync::Arc;

use lapstrake_builder_progress::VertexHandle;
use lapstrake_layerstore_oci::{ImageId, Reference};
use lapstrake_layerstore_registry::RegistryClient;
use lapstrake_layerstore_store::{ImageName, NewImage, Stores};
use lapstrake_layerstore_transfer::{layers, unpack};
use tokio_util::sync::CancellationToken;

use crate::{
    Export, ExportError, ExportRequest, Exported, Exporter, ImageOutput, Names, PlatformResult, PushOptions,
    exporter::only,
    finished::{self, Finished},
    publish::{Publishing, Uploads},
    rewrite::rewritten,
    written::{self, Order, Written},
};

impl Exporter {
    pub(crate) async fn image(
        &self,
        request: ExportRequest,
        output: ImageOutput,
        vertex: &VertexHandle,
        cancel: &CancellationToken,
    ) -> Result<Export, ExportError> {
        let ExportRequest { results, multi_platform: several, names: of_result, registry, .. } = request;
        let given = match &output.image.names {
            Names::Given(names) => names.clone(),
            Names::OfResult => of_result,
        };
        let attested = results.iter().any(|result| !result.attestations.is_empty());
        let waits = !output.manifest && output.push.is_none() && !several && !attested;
        if waits && output.store {
            let (result, names) = (only(results)?, tagged(&given));
            return self.store_lazily(result, names, output, vertex, cancel).await;
        }
        let targets = match output.push {
            Some(push) => targets(&given, push, registry)?,
            None => Vec::new(),
        };
        let pushed_names: Vec<Reference> = targets.iter().map(|(name, _)| name.clone()).collect();
        let (uploads, ready) = Uploads::begin(&self.stores, targets);
        let (stores, handle, canceled) = (self.stores.clone(), vertex.clone(), cancel.clone());
        let options = output.image.clone();
        let names = given.clone();
        let written = ExportError::blocking(move || {
            let order = Order { options: &options, results, several, names: &names };
            written::write(&stores, order, &handle, &canceled, &|blob| ready.tell(blob))
        })
        .await?;
        let written = Arc::new(written);
        let manifest = Some(written.root.clone());
        let (id, names) = if output.store {
            self.store_written(&written, &given, output, vertex, cancel).await?
        } else {
            let by_digest = output.push.is_some_and(|push| push.by_digest);
            (written.id().cloned(), if by_digest { given } else { tagged(&given) })
        };
        let exported = Exported { image: id, names, manifest, ..Exported::default() };
        let publishing = (!pushed_names.is_empty()).then(|| Publishing::new(written, uploads, pushed_names));
        Ok(Export { exported, publishing })
    }

    /// Stores an image of one platform of which nothing is compressed.
    async fn store_lazily(
        &self,
        mut result: PlatformResult,
        names: Vec<Reference>,
        output: ImageOutput,
        vertex: &VertexHandle,
        cancel: &CancellationToken,
    ) -> Result<Export, ExportError> {
        let exporting = vertex.part("exporting layers", "", 0);
        let (stores, handle, cancel) = (self.stores.clone(), vertex.clone(), cancel.clone());
        let finished = ExportError::blocking(move || {
            finished::replace_config(&mut result, &output.image)?;
            let mut all = layers(&stores, &result.tree)?;
            let epoch = output.image.epoch.or(result.epoch);
            if let (true, Some(epoch)) = (output.image.rewrite_timestamp, epoch) {
                all = rewritten(&stores, &mut result, all, epoch, &handle, &cancel)?;
            }
            finished::finish(&stores, result, all, &[], epoch)
        })
        .await?;
        exporting.done();
        let exported = self.put(finished, names, vertex).await?;
        Ok(Export { exported, publishing: None })
    }

    /// Stores a result as an image of this machine, with names that may depend on its id. Dropping the future leaves the image stored whole,
    /// with its names, or not at all.
    pub async fn store(
        &self,
        result: PlatformResult,
        names: impl FnOnce(&ImageId) -> Vec<Reference>,
        vertex: &VertexHandle,
    ) -> Result<Exported, ExportError> {
        let exporting = vertex.part("exporting layers", "", 0);
        let stores = self.stores.clone();
        let finished = ExportError::blocking(move || {
            let (all, epoch) = (layers(&stores, &result.tree)?, result.epoch);
            finished::finish(&stores, result, all, &[], epoch)
        })
        .await?;
        exporting.done();
        let names = names(&finished.id);
        self.put(finished, names, vertex).await
    }

    async fn put(
        &self,
        finished: Finished,
        names: Vec<Reference>,
        vertex: &VertexHandle,
    ) -> Result<Exported, ExportError> {
        let id = finished.id.clone();
        let writing = vertex.part(format!("writing image {id}"), "", 0);
        let stores = self.stores.clone();
        let image_names: Vec<ImageName> =
            names.iter().map(|reference| ImageName { reference: reference.clone(), target: None }).collect();
        ExportError::blocking(move || {
            // The files are durable before the record that names them is. An image that is there was flushed when it was stored.
            if stores.images.get(&finished.id)?.is_none() {
                stores.snapshots.sync()?;
            }
            stores.images.put(NewImage {
                top: finished.tree.snapshot().cloned(),
                diff_ids: finished.layers.iter().map(|layer| layer.diff_id.clone()).collect(),
                config: finished.config,
                parent: None,
                manifest: None,
                names: image_names,
            })?;
            Ok(())
        })
        .await?;
        writing.done();
        told_names(vertex, &names);
        Ok(Exported { image: Some(id), names, ..Exported::default() })
    }

    /// Stores what was written. Of an index, what its names point at where there is room for one image is the one for this machine, or else the first; other
    /// platforms' trees stay as long as the cache has them, and their layers' blobs as long as a name has the index.
    async fn store_written(
        &self,
        written: &Arc<Written>,
        given: &[Reference],
        output: ImageOutput,
        vertex: &VertexHandle,
        cancel: &CancellationToken,
    ) -> Result<(Option<ImageId>, Vec<Reference>), ExportError> {
        let by_digest = output.push.is_some_and(|push| push.by_digest);
        let root = &written.root;
        // What was pushed without a tag gets none here.
        let names = if by_digest { Vec::new() } else { tagged(given) };
        let mut image_names = match written.id() {
            None => ImageName::of_index(&names, root),
            Some(_) => names
                .iter()
                .map(|name| ImageName { reference: name.clone(), target: Some(root.clone()) })
                .collect(),
        };
        let digested = |name: &Reference| name.clone().trimmed().with_digest(root.digest.clone());
        let mut told = if by_digest { given.to_vec() } else { names.clone() };
        let mut more: Vec<Reference> = Vec::new();
        if output.canonical || by_digest {
            more.extend(given.iter().map(digested));
        }
        if let Some(dangling) = output.dangling.filter(|dangling| !dangling.only_nameless || given.is_empty())
        {
            let name = digested(&dangling.repository);
            told.push(name.clone());
            more.push(name);
        }
        for reference in more {
            if !image_names.iter().any(|known| known.reference == reference) {
                image_names.push(ImageName { reference, target: Some(root.clone()) });
            }
        }
        let (stores, written, cancel) = (self.stores.clone(), Arc::clone(written), cancel.clone());
        let id = ExportError::blocking(move || put_written(&stores, &written, image_names, &cancel)).await?;
        told_names(vertex, &told);
        Ok((Some(id), told))
    }
}

fn put_written(
    stores: &Stores,
    written: &Written,
    names: Vec<ImageName>,
    cancel: &CancellationToken,
) -> Result<ImageId, ExportError> {
    let (image, manifest) = written.representative();
    // Layers of some compressions are others than the tree's (`Finished::blobs`): then they become a tree, too.
    let unpacked = match &image.blobs {
        Some(blobs) => unpack(stores, blobs, cancel, &|_, _| ())?,
        None => image.tree.clone(),
    };
    // An image that is there was flushed when it was stored.
    if stores.images.get(&image.id)?.is_none() {
        stores.snapshots.sync()?;
    }
    Ok(stores.images.put(NewImage {
        top: unpacked.snapshot().cloned(),
        diff_ids: image.diff_ids(),
        config: image.config.clone(),
        parent: None,
        manifest: Some(manifest.descriptor.digest.clone()),
        names,
    })?)
}

/// Done by the same transaction as the image.
fn told_names(vertex: &VertexHandle, names: &[Reference]) {
    for name in names {
        vertex.part(format!("naming to {name}"), "", 0).done();
    }
}

/// Names with tags.
pub(crate) fn tagged(names: &[Reference]) -> Vec<Reference> {
    names.iter().map(|name| name.clone().with_default_tag()).collect()
}

/// Where an image is pushed to, and by whom.
fn targets(
    names: &[Reference],
    push: PushOptions,
    registry: Option<RegistryClient>,
) -> Result<Vec<(Reference, RegistryClient)>, ExportError> {
    let why = "there is no way to a registry";
    let registry = registry.ok_or(ExportError::Unsupported { output: "push", why })?;
    let target = |name: &Reference| {
        if push.by_digest && name.tag().is_some() {
            return Err(ExportError::conflict(format!("can't push tagged ref {name} by digest")));
        }
        let name = if push.by_digest { name.clone() } else { name.clone().with_default_tag() };
        let client = if push.insecure { registry.with_insecure(name.domain()) } else { registry.clone() };
        Ok((name, client))
    };
    names.iter().map(target).collect()
}
