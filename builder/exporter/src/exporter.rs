//! The exporter: one request to one output.

use std::{collections::BTreeMap, io::Write};

use lapstrake_builder_progress::VertexHandle;
use lapstrake_layerstore_diff::{WriteOptions, write_tree, write_trees};
use lapstrake_layerstore_oci::{Digest, ImageId, Reference};
use lapstrake_layerstore_store::{ImageName, Layer, NewImage, OpenSnapshot, Stores, Tree};
use lapstrake_layerstore_transfer::{ArchiveImage, layers, write_docker_archive};
use lapstrake_session::{Coverage, ExporterId, SessionCaller, SessionId, Sessions, Wait};
use time::OffsetDateTime;
use tokio_util::sync::CancellationToken;

use crate::{
    Destination, ExportError, ExportRequest, Exported, LocalOutput, Names, Output, PlatformResult,
    config::{self, MadeLayer},
    directory,
    index::Layout,
    stream,
};

/// Leaves behind what builds have built. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Exporter {
    pub(crate) stores: Stores,
}

impl Output {
    /// What a display calls the export; `None` when there is none.
    pub fn progress_name(&self) -> Option<String> {
        self.name().map(str::to_owned)
    }

    fn name(&self) -> Option<&'static str> {
        match self {
            Self::CacheOnly => None,
            Self::Image(_) => Some("exporting to image"),
            Self::Local(_) => Some("exporting to client directory"),
            Self::Tar(_) => Some("exporting to client tarball"),
            Self::Oci(_) => Some("exporting to oci image format"),
            Self::Docker(_) => Some("exporting to docker image format"),
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

/// An output that is made, and that others do not see yet.
#[derive(Debug, Default)]
pub struct Export {
    /// What was left behind.
    pub exported: Exported,
}

impl Export {
    /// Whether [`Exporter::publish`] has nothing to do.
    pub fn is_public(&self) -> bool {
        true
    }
}

/// A result with its layers computed and its config filled in.
pub(crate) struct Finished {
    pub(crate) id: ImageId,
    pub(crate) config: Vec<u8>,
    pub(crate) created: Option<String>,
    pub(crate) layers: Vec<Layer>,
    pub(crate) tree: Tree,
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
    ) -> Result<Export, ExportError> {
        let Some(name) = request.output.name() else { return Ok(Export::default()) };
        let client = Client { sessions, session: request.session, output: name };
        let (results, several) = (request.results, request.multi_platform);
        if results.is_empty() {
            return Err(ExportError::NoResults);
        }
        request.output.admits(several)?;
        let work = async {
            match request.output {
                Output::CacheOnly => Ok(Exported::default()),
                Output::Image(output) if several => {
                    let names = tagged(&output.image.names, &request.names);
                    self.index(results, names, vertex, cancel).await
                }
                Output::Image(output) => {
                    let names = tagged(&output.image.names, &request.names);
                    self.image(only(results)?, names, vertex).await
                }
                Output::Local(LocalOutput { tree, .. }) => {
                    let split = tree.split.unwrap_or(several);
                    self.local(results, tree.to, split, &client, vertex, cancel).await
                }
                Output::Tar(tree) => self.tar(results, tree.to, several, &client, vertex, cancel).await,
                Output::Docker(output) => {
                    let names = tagged(&output.image.names, &request.names);
                    self.docker(only(results)?, names, output.to, &client, vertex, cancel).await
                }
                Output::Oci(output) => {
                    let names = tagged(&output.image.names, &request.names);
                    let layout = Layout { names, to: output.to, several };
                    self.oci(results, layout, &client, vertex, cancel).await
                }
            }
        };
        tokio::select! {
            result = work => Ok(Export { exported: result? }),
            () = cancel.cancelled() => Err(ExportError::Canceled),
        }
    }

    /// Does what is to be done when all outputs of the build are made: what others see.
    pub async fn publish(
        &self,
        export: Export,
        _vertex: &VertexHandle,
        _cancel: &CancellationToken,
    ) -> Result<Exported, ExportError> {
        Ok(export.exported)
    }

    /// Computes the layers of a result and fills in its config.
    pub(crate) async fn finish(
        &self,
        result: PlatformResult,
        vertex: &VertexHandle,
    ) -> Result<Finished, ExportError> {
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
        self.store(result, |_| names, vertex).await
    }

    /// Stores a result as an image of this machine, with names that may depend on its id. Dropping the future leaves the image stored whole,
    /// with its names, or not at all.
    pub async fn store(
        &self,
        result: PlatformResult,
        names: impl FnOnce(&ImageId) -> Vec<Reference>,
        vertex: &VertexHandle,
    ) -> Result<Exported, ExportError> {
        let finished = self.finish(result, vertex).await?;
        let id = finished.id.clone();
        let names = names(&id);
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

    async fn tar(
        &self,
        mut results: Vec<PlatformResult>,
        to: Destination,
        split: bool,
        client: &Client<'_>,
        vertex: &VertexHandle,
        cancel: &CancellationToken,
    ) -> Result<Exported, ExportError> {
        results.sort_by_key(directory::platform_directory);
        let sending = vertex.part("sending tarball", "", 0);
        let stores = self.stores.clone();
        stream::write_to(to, client, &BTreeMap::new(), cancel, move |out| {
            if split {
                write_platforms(&stores, &results, out)
            } else {
                write_tar(&stores, &only(results)?.tree, out)
            }
        })
        .await?;
        sending.done();
        Ok(Exported::default())
    }

    async fn local(
        &self,
        mut results: Vec<PlatformResult>,
        to: Destination,
        split: bool,
        client: &Client<'_>,
        vertex: &VertexHandle,
        cancel: &CancellationToken,
    ) -> Result<Exported, ExportError> {
        results.sort_by_key(directory::platform_directory);
        let stores = self.stores.clone();
        let copying = vertex.part("copying files", "", 0);
        match to {
            Destination::Stdout => {
                let why = "a directory cannot go to standard output";
                return Err(ExportError::Unsupported { output: client.output, why });
            }
            Destination::Path(path) => {
                let cancel = cancel.clone();
                let write = move || {
                    if !split {
                        directory::refuse_doubles(&stores, &results)?;
                    }
                    results.iter().try_for_each(|result| {
                        let own = path.join(directory::platform_directory(result));
                        let path = if split { &own } else { &path };
                        directory::write_directory(&stores, &result.tree, path, &cancel)
                    })
                };
                ExportError::blocking(write).await?;
            }
            Destination::Session => {
                let caller = client.caller().await?;
                let readers =
                    ExportError::blocking(move || directory::readers(&stores, &results, split)).await?;
                // Part by part, the client must keep what the others brought.
                let coverage = if readers.len() == 1 { Coverage::Whole } else { Coverage::Partial };
                for reader in readers {
                    caller.send_dir(ExporterId::default(), reader, coverage, None, cancel).await?;
                }
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

fn write_platforms(
    stores: &Stores,
    results: &[PlatformResult],
    out: &mut dyn Write,
) -> Result<(), ExportError> {
    let open: Vec<Option<OpenSnapshot>> =
        results.iter().map(|result| stores.open(&result.tree)).collect::<Result<_, _>>()?;
    let trees: Vec<_> = results
        .iter()
        .zip(&open)
        .map(|(result, open)| (directory::platform_directory(result), open.as_ref().map(OpenSnapshot::root)))
        .collect();
    write_trees(&trees, &WriteOptions::default(), out)?;
    Ok(())
}

/// The names that an image gets, with tags.
pub(crate) fn tagged(names: &Names, of_result: &[Reference]) -> Vec<Reference> {
    let names = match names {
        Names::Given(names) => names,
        Names::OfResult => of_result,
    };
    names.iter().map(|name| name.clone().with_default_tag()).collect()
}

/// The result of an output that has room for one.
pub(crate) fn only(mut results: Vec<PlatformResult>) -> Result<PlatformResult, ExportError> {
    match results.pop() {
        None => Err(ExportError::NoResults),
        Some(result) if results.is_empty() => Ok(result),
        Some(_) => Err(ExportError::SeveralPlatforms),
    }
}
