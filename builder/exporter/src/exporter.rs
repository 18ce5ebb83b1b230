//! The exporter: one request to one output.

use std::{collections::BTreeMap, io::Write, path::Path};

use lapstrake_builder_progress::VertexHandle;
use lapstrake_layerstore_diff::{WriteOptions, write_tree};
use lapstrake_layerstore_oci::{Digest, ImageId, LayerCompression, Reference};
use lapstrake_layerstore_store::{ImageName, Layer, NewImage, Stores, Tree};
use lapstrake_layerstore_transfer::{
    ArchiveImage, ManifestForm, ManifestOptions, layers, make_manifest, write_docker_archive,
    write_oci_archive,
};
use lapstrake_session::{Coverage, ExporterId, SessionCaller, SessionId, Sessions, Wait};
use time::OffsetDateTime;
use tokio_util::sync::CancellationToken;

use crate::{
    Destination, ExportError, ExportRequest, Exported, Output, PlatformResult,
    config::{self, MadeLayer},
    directory, stream,
};

/// Leaves behind what builds have built. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Exporter {
    stores: Stores,
}

impl Output {
    /// What a display calls the export; `None` when there is none.
    pub fn progress_name(&self) -> Option<String> {
        self.name().map(str::to_owned)
    }

    fn name(&self) -> Option<&'static str> {
        match self {
            Self::CacheOnly => None,
            Self::Image { .. } => Some("exporting to image"),
            Self::Local(_) => Some("exporting to client directory"),
            Self::Tar(_) => Some("exporting to client tarball"),
            Self::Oci { .. } => Some("exporting to oci image format"),
            Self::Docker { .. } => Some("exporting to docker image format"),
        }
    }
}

/// The client's session, found when it is needed.
pub(crate) struct Client<'a> {
    sessions: &'a Sessions,
    session: Option<SessionId>,
    output: &'static str,
}

impl Client<'_> {
    pub(crate) async fn caller(&self) -> Result<SessionCaller, ExportError> {
        let id = self.session.as_ref().ok_or(ExportError::NoSession { output: self.output })?;
        Ok(self.sessions.get(id.as_str(), Wait::default()).await?)
    }
}

/// A result with its layers computed and its config filled in.
struct Finished {
    id: ImageId,
    config: Vec<u8>,
    created: Option<String>,
    layers: Vec<Layer>,
    tree: Tree,
}

impl Exporter {
    /// An exporter of what is in these stores.
    pub fn new(stores: Stores) -> Self {
        Self { stores }
    }

    /// Leaves a build's results behind.
    ///
    /// Cancelled by `cancel` or by dropping the future: an image is stored whole with all its names or not at all, a file appears only
    /// when it is whole, and a directory holds a part.
    pub async fn export(
        &self,
        request: ExportRequest,
        sessions: &Sessions,
        vertex: &VertexHandle,
        cancel: &CancellationToken,
    ) -> Result<Exported, ExportError> {
        let Some(name) = request.output.name() else { return Ok(Exported::default()) };
        let client = Client { sessions, session: request.session, output: name };
        let work = async {
            match request.output {
                Output::CacheOnly => Ok(Exported::default()),
                Output::Image { names } => {
                    let result = only(request.results, name)?;
                    self.image(result, names, vertex).await
                }
                Output::Local(to) => self.local(request.results, to, &client, vertex, cancel).await,
                Output::Tar(to) => self.tar(only(request.results, name)?, to, &client, vertex, cancel).await,
                Output::Docker { names, to } => {
                    let result = only(request.results, name)?;
                    self.docker(result, names, to, &client, vertex, cancel).await
                }
                Output::Oci { names, to } => {
                    self.oci(request.results, names, to, &client, vertex, cancel).await
                }
            }
        };
        tokio::select! {
            result = work => result,
            () = cancel.cancelled() => Err(ExportError::Canceled),
        }
    }

    /// Computes the layers of a result and fills in its config.
    async fn finish(&self, result: PlatformResult, vertex: &VertexHandle) -> Result<Finished, ExportError> {
        let exporting = vertex.part("exporting layers", "", 0);
        let stores = self.stores.clone();
        let finished = ExportError::blocking(move || {
            let layers = layers(&stores, &result.tree)?;
            let mut made = Vec::with_capacity(layers.len());
            for layer in &layers {
                let created = OffsetDateTime::from(stores.snapshots.stat(&layer.snapshot)?.created);
                made.push(MadeLayer { diff_id: layer.diff_id.clone(), created });
            }
            let config = config::finish(result.config, &made, result.epoch)?;
            let created = config.created.as_ref().map(|created| created.as_str().to_owned());
            let config = config.to_json()?;
            let id = ImageId(Digest::sha256_of(&config));
            Ok(Finished { id, config, created, layers, tree: result.tree })
        })
        .await?;
        exporting.done();
        Ok(finished)
    }

    async fn image(
        &self,
        result: PlatformResult,
        names: Vec<Reference>,
        vertex: &VertexHandle,
    ) -> Result<Exported, ExportError> {
        let finished = self.finish(result, vertex).await?;
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
        for name in &names {
            // Done by the same transaction as the image.
            vertex.part(format!("naming to {name}"), "", 0).done();
        }
        Ok(Exported { image: Some(id), names, manifest: None })
    }

    async fn docker(
        &self,
        result: PlatformResult,
        names: Vec<Reference>,
        to: Destination,
        client: &Client<'_>,
        vertex: &VertexHandle,
        cancel: &CancellationToken,
    ) -> Result<Exported, ExportError> {
        let Finished { id, config, layers, tree, .. } = self.finish(result, vertex).await?;
        let sending = vertex.part("sending tarball", "", 0);
        let metadata = BTreeMap::from([("containerimage.config.digest".to_owned(), id.to_string())]);
        let (stores, canceled) = (self.stores.clone(), cancel.clone());
        let image = ArchiveImage { config, layers, names: names.clone(), parent: None };
        stream::write_to(to, client, &metadata, cancel, move |out| {
            let written = write_docker_archive(&stores, &[image], out, &canceled);
            // Held until here.
            drop(tree);
            Ok(written?)
        })
        .await?;
        sending.done();
        Ok(Exported { image: Some(id), names, manifest: None })
    }

    async fn oci(
        &self,
        results: Vec<PlatformResult>,
        names: Vec<Reference>,
        to: Destination,
        client: &Client<'_>,
        vertex: &VertexHandle,
        cancel: &CancellationToken,
    ) -> Result<Exported, ExportError> {
        let mut manifests = Vec::with_capacity(results.len());
        let mut created: Option<String> = None;
        let mut image = None;
        for result in results {
            let platform = result.platform.clone();
            let finished = self.finish(result, vertex).await?;
            let exporting = vertex.part(format!("exporting manifest for {platform}"), "", 0);
            image = Some(finished.id.clone());
            created = created.max(finished.created.clone());
            let (stores, cancel) = (self.stores.clone(), cancel.clone());
            manifests.push(
                ExportError::blocking(move || {
                    let options =
                        ManifestOptions { form: ManifestForm::Oci, compression: LayerCompression::Gzip };
                    let mut made =
                        make_manifest(&stores, &finished.config, &finished.layers, &options, &cancel)?;
                    made.descriptor.platform = Some(platform);
                    Ok(made)
                })
                .await?,
            );
            exporting.done();
        }
        let image = match manifests.len() {
            0 => return Err(ExportError::NoResults),
            1 => image,
            // An index has no one config.
            _ => None,
        };
        let sending = vertex.part("sending tarball", "", 0);
        let annotations =
            created.map(|time| ("org.opencontainers.image.created".to_owned(), time)).into_iter().collect();
        let (stores, canceled, archived_names) = (self.stores.clone(), cancel.clone(), names.clone());
        let (tell, told) = tokio::sync::oneshot::channel();
        stream::write_to(to, client, &BTreeMap::new(), cancel, move |out| {
            let root = write_oci_archive(&stores, &manifests, &archived_names, &annotations, out, &canceled)?;
            // It is asked for below.
            let _ = tell.send(root);
            Ok(())
        })
        .await?;
        sending.done();
        Ok(Exported { image, names, manifest: told.await.ok() })
    }

    async fn tar(
        &self,
        result: PlatformResult,
        to: Destination,
        client: &Client<'_>,
        vertex: &VertexHandle,
        cancel: &CancellationToken,
    ) -> Result<Exported, ExportError> {
        let sending = vertex.part("sending tarball", "", 0);
        let stores = self.stores.clone();
        stream::write_to(to, client, &BTreeMap::new(), cancel, move |out| {
            write_tar(&stores, &result.tree, out)
        })
        .await?;
        sending.done();
        Ok(Exported::default())
    }

    async fn local(
        &self,
        results: Vec<PlatformResult>,
        to: Destination,
        client: &Client<'_>,
        vertex: &VertexHandle,
        cancel: &CancellationToken,
    ) -> Result<Exported, ExportError> {
        let stores = self.stores.clone();
        let copying = vertex.part("copying files", "", 0);
        match to {
            Destination::Stdout => {
                let why = "a directory cannot go to standard output";
                return Err(ExportError::Unsupported { output: client.output, why });
            }
            Destination::Path(path) => {
                let cancel = cancel.clone();
                ExportError::blocking(move || write_directories(&stores, &results, &path, &cancel)).await?;
            }
            Destination::Session => {
                let caller = client.caller().await?;
                let reader = ExportError::blocking(move || {
                    let is_split = results.len() > 1;
                    let mut trees = Vec::with_capacity(results.len());
                    for result in &results {
                        trees.push((
                            directory::platform_directory(result),
                            directory::tree_reader(&stores, &result.tree)?,
                        ));
                    }
                    match trees.pop() {
                        None => Err(ExportError::NoResults),
                        Some((_, tree)) if !is_split => Ok(directory::shared(tree)),
                        Some(last) => {
                            trees.push(last);
                            Ok(directory::shared(directory::split(trees)))
                        }
                    }
                })
                .await?;
                caller.send_dir(ExporterId::default(), reader, Coverage::Whole, None, cancel).await?;
            }
        }
        copying.done();
        Ok(Exported::default())
    }
}

fn write_tar(stores: &Stores, tree: &Tree, out: &mut dyn Write) -> Result<(), ExportError> {
    match stores.open(tree)? {
        Some(open) => {
            write_tree(open.root(), &WriteOptions::default(), &mut |_| true, out)?;
            Ok(())
        }
        // An archive of nothing: two zero blocks.
        None => out.write_all(&[0; 1024]).map_err(ExportError::io("write", "an empty archive")),
    }
}

fn write_directories(
    stores: &Stores,
    results: &[PlatformResult],
    path: &Path,
    cancel: &CancellationToken,
) -> Result<(), ExportError> {
    match results {
        [] => Err(ExportError::NoResults),
        [result] => directory::write_directory(stores, &result.tree, path, cancel),
        several => several.iter().try_for_each(|result| {
            let path = path.join(directory::platform_directory(result));
            directory::write_directory(stores, &result.tree, &path, cancel)
        }),
    }
}

/// The result of an output that has room for one.
fn only(mut results: Vec<PlatformResult>, output: &'static str) -> Result<PlatformResult, ExportError> {
    match results.pop() {
        None => Err(ExportError::NoResults),
        Some(result) if results.is_empty() => Ok(result),
        Some(_) => {
            let why =
                "exporting several platforms at once is not supported by this output; build them one by one";
            Err(ExportError::Unsupported { output, why })
        }
    }
}
