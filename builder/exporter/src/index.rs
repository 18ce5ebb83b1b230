//! Images of several platforms: an index in the image store, or in an OCI layout.

use lapstrake_builder_progress::VertexHandle;
use lapstrake_layerstore_oci::Reference;
use lapstrake_layerstore_store::{ImageName, NewImage};
use lapstrake_layerstore_transfer::{
    BlobOptions, ImageManifest, LayoutContents, ManifestForm, ManifestOptions, make_index, make_manifest,
    write_oci_archive,
};
use tokio_util::sync::CancellationToken;

use crate::{
    Destination, ExportError, Exported, Exporter, PlatformResult,
    exporter::{Client, Finished, only},
    stream,
};

/// What an OCI layout is to be.
pub(crate) struct Layout {
    pub(crate) names: Vec<Reference>,
    pub(crate) to: Destination,
    /// Whether it has an index, also of one image.
    pub(crate) several: bool,
}

impl Exporter {
    /// Stores an index under the names. What they point at, where there is room for one image, is the one for this machine, or else the first.
    ///
    /// Other platforms' trees stay as long as the cache has them; their layers' blobs as long as a name has the index.
    pub(crate) async fn index(
        &self,
        results: Vec<PlatformResult>,
        names: Vec<Reference>,
        vertex: &VertexHandle,
        cancel: &CancellationToken,
    ) -> Result<Exported, ExportError> {
        let form = ManifestForm::Docker;
        let (mut finished, mut manifests) = (Vec::new(), Vec::new());
        for result in results {
            let (image, manifest) = self.manifest(result, form, vertex, cancel).await?;
            finished.push(image);
            manifests.push(manifest);
        }
        let stores = self.stores.clone();
        let image_names = names.clone();
        let (id, index) = ExportError::blocking(move || {
            let index = make_index(&stores, manifests, form)?;
            let shown = index.representative().expect("there is a result");
            let image = finished.into_iter().find(|image| *image.id.digest() == shown.manifest.config.digest);
            let image = image.expect("every manifest is of a result");
            // Blobs are durable when they are there, and the index came last. Then the tree; then, in one transaction, the image and the names, which keep
            // the index and all that it names. A crash before that leaves blobs that nothing names, which the next start collects.
            if stores.images.get(&image.id)?.is_none() {
                stores.snapshots.sync()?;
            }
            let id = stores.images.put(NewImage {
                top: image.tree.snapshot().cloned(),
                diff_ids: image.layers.iter().map(|layer| layer.diff_id.clone()).collect(),
                config: image.config,
                parent: None,
                manifest: Some(shown.descriptor.digest.clone()),
                names: ImageName::of_index(&image_names, &index.descriptor),
            })?;
            Ok((id, index.descriptor))
        })
        .await?;
        vertex.part(format!("exporting manifest list {}", index.digest), "", 0).done();
        for name in &names {
            // Done by the same transaction as the image.
            vertex.part(format!("naming to {name}"), "", 0).done();
        }
        Ok(Exported { image: Some(id), names, manifest: Some(index) })
    }

    /// Writes an OCI layout.
    pub(crate) async fn oci(
        &self,
        results: Vec<PlatformResult>,
        Layout { names, to, several }: Layout,
        client: &Client<'_>,
        vertex: &VertexHandle,
        cancel: &CancellationToken,
    ) -> Result<Exported, ExportError> {
        let form = ManifestForm::Oci;
        let mut created: Option<String> = None;
        let mut image = None;
        let contents = if several {
            let mut manifests = Vec::with_capacity(results.len());
            for result in results {
                let (finished, manifest) = self.manifest(result, form, vertex, cancel).await?;
                created = created.max(finished.created);
                manifests.push(manifest);
            }
            let stores = self.stores.clone();
            let index = ExportError::blocking(move || Ok(make_index(&stores, manifests, form)?)).await?;
            vertex.part(format!("exporting manifest list {}", index.descriptor.digest), "", 0).done();
            LayoutContents::Index(Box::new(index))
        } else {
            let (finished, manifest) = self.manifest(only(results)?, form, vertex, cancel).await?;
            created = finished.created;
            // An index has no one config.
            image = Some(finished.id);
            LayoutContents::Manifest(Box::new(manifest))
        };
        let sending = vertex.part("sending tarball", "", 0);
        let annotations =
            created.map(|time| ("org.opencontainers.image.created".to_owned(), time)).into_iter().collect();
        let (stores, canceled, archived_names) = (self.stores.clone(), cancel.clone(), names.clone());
        let (tell, told) = tokio::sync::oneshot::channel();
        stream::write_to(to, client, &Default::default(), cancel, move |out| {
            let root = write_oci_archive(&stores, &contents, &archived_names, &annotations, out, &canceled)?;
            // It is asked for below.
            let _ = tell.send(root);
            Ok(())
        })
        .await?;
        sending.done();
        Ok(Exported { image, names, manifest: told.await.ok() })
    }

    /// A result's config and its manifest, with all blobs in the content store.
    async fn manifest(
        &self,
        result: PlatformResult,
        form: ManifestForm,
        vertex: &VertexHandle,
        cancel: &CancellationToken,
    ) -> Result<(Finished, ImageManifest), ExportError> {
        let platform = result.platform.clone();
        let finished = self.finish(result, vertex).await?;
        let exporting = vertex.part(format!("exporting manifest for {platform}"), "", 0);
        let (stores, cancel) = (self.stores.clone(), cancel.clone());
        let made = ExportError::blocking(move || {
            let options = ManifestOptions::of_buildkit(form, BlobOptions::default());
            let mut made = make_manifest(&stores, &finished.config, &finished.layers, &options, &cancel)?;
            made.descriptor.platform = Some(platform);
            Ok((finished, made))
        })
        .await?;
        exporting.done();
        Ok(made)
    }
}
