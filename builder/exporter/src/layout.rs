//! OCI layouts: in a tar stream, in a directory, or in the client's content store.

use std::{
    fs::{self, File},
    io,
    path::Path,
    sync::Arc,
};

use lapstrake_builder_progress::VertexHandle;
use lapstrake_layerstore_oci::{Descriptor, Index, MediaType, Reference};
use lapstrake_layerstore_store::Stores;
use lapstrake_layerstore_transfer::{OCI_LAYOUT, layout_entries, write_oci_archive};
use tokio_util::sync::CancellationToken;

use crate::{
    Destination, ExportError, ExportRequest, Exported, Exporter, LayoutOutput, Names,
    exporter::Client,
    image::tagged,
    stream::{self, Cancellable, canceled_or, write_file},
    written::{self, Order, Written},
};

/// When the image was made, in what names it in a layout.
const CREATED: &str = "org.opencontainers.image.created";
/// The store that BuildKit's clients offer for a layout in a directory.
const EXPORT_STORE: &str = "export";
/// Longest index of a layout that is there already.
const MOST_INDEX: u64 = 4 << 20;

impl Exporter {
    pub(crate) async fn layout(
        &self,
        mut request: ExportRequest,
        output: LayoutOutput,
        docker: bool,
        client: &Client<'_>,
        vertex: &VertexHandle,
        cancel: &CancellationToken,
    ) -> Result<Exported, ExportError> {
        if docker {
            // Its archives have no place for them.
            request.results.iter_mut().for_each(|result| result.attestations.clear());
        }
        let given = match &output.image.names {
            Names::Given(names) => names.clone(),
            Names::OfResult => request.names,
        };
        let names = tagged(&given);
        let (stores, handle, canceled) = (self.stores.clone(), vertex.clone(), cancel.clone());
        let (options, several) = (output.image.clone(), request.multi_platform);
        let (results, epoch) = (request.results, output.image.epoch);
        let of_result = results.iter().filter_map(|result| epoch.or(result.epoch)).max();
        let order_names = names.clone();
        let written = ExportError::blocking(move || {
            let order = Order { options: &options, results, several, names: &order_names };
            written::write(&stores, order, &handle, &canceled, &|_| ())
        })
        .await?;
        let mut root = written.root.clone();
        let created = of_result
            .and_then(|epoch| time::OffsetDateTime::from_unix_timestamp(epoch).ok())
            .map(|time| lapstrake_layerstore_oci::Timestamp::from(time).as_str().to_owned())
            .or_else(|| written.images.iter().filter_map(|image| image.created.clone()).max());
        if let Some(created) = created {
            root.annotations.entry(CREATED.to_owned()).or_insert(created);
        }
        let exported = Exported {
            image: written.id().cloned(),
            names: names.clone(),
            manifest: Some(root.clone()),
            ..Exported::default()
        };
        let order = LayoutOrder { written: Arc::new(written), root, names, docker };
        if output.tar {
            let sending = vertex.part("sending tarball", "", 0);
            let (stores, canceled, metadata) = (self.stores.clone(), cancel.clone(), exported.response());
            let sent = stream::write_to(output.to, client, &metadata, cancel, move |out| {
                let LayoutOrder { written, root, names, docker } = &order;
                Ok(write_oci_archive(&stores, &written.contents, root, names, *docker, out, &canceled)?)
            });
            match sent.await {
                // By what it was told of the image, the client saw that it has it.
                Ok(()) | Err(ExportError::Session(lapstrake_session::Error::TargetExists { .. })) => {}
                Err(error) => return Err(error),
            }
            sending.done();
            return Ok(exported);
        }
        let copying = vertex.part("copying files", "", 0);
        match output.to {
            Destination::Path(path) => {
                let (stores, cancel) = (self.stores.clone(), cancel.clone());
                ExportError::blocking(move || order.write_directory(&stores, &path, &cancel)).await?;
            }
            Destination::Session => self.send(&order.written, client, cancel).await?,
            Destination::Stdout => {
                let why = "a directory cannot go to standard output";
                return Err(ExportError::Unsupported { output: client.output(), why });
            }
        }
        copying.done();
        Ok(exported)
    }

    /// Sends blobs to the client's store, which makes a layout of them itself; what names a blob after it.
    async fn send(
        &self,
        written: &Written,
        client: &Client<'_>,
        cancel: &CancellationToken,
    ) -> Result<(), ExportError> {
        let caller = client.caller().await?;
        for blob in written.contents.blobs() {
            let (content, digest) = (Arc::clone(&self.stores.content), blob.digest.clone());
            let mut reader = ExportError::blocking(move || Ok(content.reader(&digest)?)).await?;
            let mut upload = match caller.send_blob(EXPORT_STORE, blob.digest.as_str(), blob.size).await? {
                Some(upload) => upload,
                None => continue,
            };
            let canceled = cancel.clone();
            let upload = ExportError::blocking(move || {
                let mut buffer = vec![0; 256 << 10];
                // What the client has of an upload that broke off.
                let there = upload.offset();
                io::copy(&mut io::Read::take(&mut reader, there), &mut io::sink())
                    .map_err(ExportError::io("read", digest_path(&blob)))?;
                loop {
                    if canceled.is_cancelled() {
                        return Err(ExportError::Canceled);
                    }
                    let count = io::Read::read(&mut reader, &mut buffer)
                        .map_err(ExportError::io("read", digest_path(&blob)))?;
                    if count == 0 {
                        return Ok(upload);
                    }
                    upload.blocking_write(bytes::Bytes::copy_from_slice(&buffer[..count]))?;
                }
            })
            .await?;
            upload.finish().await?;
        }
        Ok(())
    }
}

struct LayoutOrder {
    written: Arc<Written>,
    root: Descriptor,
    names: Vec<Reference>,
    docker: bool,
}

fn digest_path(blob: &Descriptor) -> String {
    format!("blobs/{}/{}", blob.digest.algorithm(), blob.digest.hex())
}

impl LayoutOrder {
    /// Writes blobs, then the index that names them; each file appears when it is whole. What the directory has of other images stays.
    fn write_directory(
        &self,
        stores: &Stores,
        directory: &Path,
        cancel: &CancellationToken,
    ) -> Result<(), ExportError> {
        for blob in self.written.contents.blobs() {
            let path = directory.join(digest_path(&blob));
            let parent = path.parent().expect("it is below the directory");
            fs::create_dir_all(parent).map_err(ExportError::io("create", parent))?;
            // Named by its content: what has the name and the length was written by the same code.
            if path.metadata().is_ok_and(|there| there.is_file() && there.len() == blob.size) {
                continue;
            }
            let mut reader = stores.content.reader(&blob.digest)?;
            write_file(&path, cancel, |out| {
                let mut out = Cancellable { out, cancel };
                let copied = io::copy(&mut reader, &mut out).map(drop);
                canceled_or(copied.map_err(ExportError::io("write", &path)), cancel)
            })?;
        }
        let mut entries = layout_entries(&self.root, &self.names)?;
        let path = directory.join("index.json");
        let others = read_index(&path)?.map(|index| index.manifests).unwrap_or_default();
        let is_replaced = |other: &Descriptor| {
            let name = |entry: &Descriptor| entry.annotations.get("io.containerd.image.name").cloned();
            entries.iter().any(|entry| match name(entry) {
                Some(own) => name(other) == Some(own),
                None => entry.digest == other.digest,
            })
        };
        let mut all: Vec<Descriptor> = others.into_iter().filter(|other| !is_replaced(other)).collect();
        all.append(&mut entries);
        let index = Index::new(MediaType::OCI_INDEX, all).to_json()?;
        let file = |name: &str, bytes: &[u8]| {
            let path = directory.join(name);
            write_file(&path, cancel, |out| out.write_all(bytes).map_err(ExportError::io("write", &path)))
        };
        file("oci-layout", OCI_LAYOUT)?;
        file("index.json", &index)
    }
}

fn read_index(path: &Path) -> Result<Option<Index>, ExportError> {
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(ExportError::io("open", path)(error)),
    };
    let mut bytes = Vec::new();
    io::Read::read_to_end(&mut io::Read::take(file, MOST_INDEX), &mut bytes)
        .map_err(ExportError::io("read", path))?;
    Ok(Some(Index::from_json(&bytes)?))
}
