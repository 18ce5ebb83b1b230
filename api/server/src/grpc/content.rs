//! containerd's content service, to read from: documents and logs of builds, and the store's blobs. What writes is refused.

use std::{
    collections::BTreeMap,
    io::{self, Read, Seek as _, SeekFrom},
    sync::Arc,
};

use futures::stream::{self, BoxStream, StreamExt as _};
use lapstrake_api_proto::content::{
    AbortRequest, DeleteContentRequest, Info, InfoRequest, InfoResponse, ListContentRequest,
    ListContentResponse, ListStatusesRequest, ListStatusesResponse, Nothing, ReadContentRequest,
    ReadContentResponse, StatusRequest, StatusResponse, UpdateRequest, UpdateResponse, WriteContentRequest,
    WriteContentResponse, content_server,
};
use lapstrake_layerstore_oci::{Digest, ImageId};
use lapstrake_layerstore_store::{StoreError, Stores};
use tokio::sync::mpsc;
use tonic::{Request, Response, Status, Streaming};

use crate::{
    AppState,
    error::chain,
    grpc::{blocking, filter::Filters},
};

/// Bytes of a message.
const CHUNK: usize = 1 << 20;

/// Blobs that a message of a list tells of, as in containerd.
const LISTED: usize = 100;

/// The service.
pub(super) struct Content(pub(super) Arc<AppState>);

/// Something with a digest, to be read from its beginning.
struct Blob {
    bytes: u64,
    reader: Box<dyn Read + Send>,
}

fn digest(text: &str) -> Result<Digest, Status> {
    Digest::parse(text).map_err(|error| Status::invalid_argument(chain(&error)))
}

fn no_such(digest: &Digest) -> Status {
    Status::not_found(format!("content {digest}: not found"))
}

fn internal(error: &(dyn std::error::Error + 'static)) -> Status {
    Status::internal(chain(error))
}

/// The length of a blob or of an image's config. Blocks.
pub(super) fn length(stores: &Stores, digest: &Digest) -> Result<Option<u64>, StoreError> {
    if let Some(info) = stores.content.info(digest)? {
        return Ok(Some(info.size));
    }
    Ok(stores.images.get(&ImageId::from(digest.clone()))?.map(|image| image.config.len() as u64))
}

/// What has a digest, at an offset. Blocks.
fn find(state: &AppState, digest: &Digest, offset: u64) -> Result<Blob, Status> {
    if let Some(history) = state.history.get()
        && let Some(mut document) = history.document(digest).map_err(|error| internal(&error))?
    {
        // It is packed: there is no other way to its middle.
        io::copy(&mut document.reader.by_ref().take(offset), &mut io::sink())
            .map_err(|error| internal(&error))?;
        return Ok(Blob { bytes: document.bytes, reader: document.reader });
    }
    let content = &state.stores.content;
    if content.info(digest).map_err(|error| internal(&error))?.is_none() {
        // Configs of images that have no manifest are with the images.
        let image =
            state.stores.images.get(&ImageId::from(digest.clone())).map_err(|error| internal(&error))?;
        let config = image.ok_or_else(|| no_such(digest))?.config;
        let bytes = config.len() as u64;
        let mut reader = io::Cursor::new(config);
        reader.set_position(offset.min(bytes));
        return Ok(Blob { bytes, reader: Box::new(reader) });
    }
    let mut reader = content.reader(digest).map_err(|error| internal(&error))?;
    let bytes = reader.size();
    reader.seek(SeekFrom::Start(offset.min(bytes))).map_err(|error| internal(&error))?;
    Ok(Blob { bytes, reader: Box::new(reader) })
}

#[tonic::async_trait]
impl content_server::Content for Content {
    async fn info(&self, request: Request<InfoRequest>) -> Result<Response<InfoResponse>, Status> {
        let digest = digest(&request.into_inner().digest)?;
        let state = Arc::clone(&self.0);
        let info = blocking(move || {
            let Blob { bytes, .. } = find(&state, &digest, 0)?;
            Ok(Info { digest: digest.to_string(), size: i64::try_from(bytes).unwrap_or(i64::MAX) })
        });
        Ok(Response::new(InfoResponse { info: Some(info.await?) }))
    }

    async fn read(
        &self,
        request: Request<ReadContentRequest>,
    ) -> Result<Response<BoxStream<'static, Result<ReadContentResponse, Status>>>, Status> {
        let ReadContentRequest { digest: text, offset, size } = request.into_inner();
        let digest = digest(&text)?;
        let number = |what: &str, number: i64| {
            u64::try_from(number).map_err(|_| Status::out_of_range(format!("{what} {number} is negative")))
        };
        let (offset, size) = (number("offset", offset)?, number("size", size)?);
        let state = Arc::clone(&self.0);
        let (blob, size) = blocking(move || {
            let blob = find(&state, &digest, offset)?;
            let past = || Status::out_of_range(format!("read past object length {} bytes", blob.bytes));
            let left = blob.bytes.checked_sub(offset).ok_or_else(past)?;
            match size {
                0 => Ok((blob, left)),
                size if size > left => Err(past()),
                size => Ok((blob, size)),
            }
        })
        .await?;
        let (sender, receiver) = mpsc::channel(2);
        tokio::task::spawn_blocking(move || send(blob, offset, size, &sender));
        Ok(Response::new(stream(receiver)))
    }

    async fn list(
        &self,
        request: Request<ListContentRequest>,
    ) -> Result<Response<BoxStream<'static, Result<ListContentResponse, Status>>>, Status> {
        let filters = Filters::parse(&request.into_inner().filters)?;
        let state = Arc::clone(&self.0);
        // A client that was told of its build's end finds what was recorded of it.
        if let Some(history) = state.history.get() {
            history.settle().await;
        }
        let (sender, receiver) = mpsc::channel(2);
        tokio::task::spawn_blocking(move || {
            if let Err(error) = list(&state, &filters, &sender) {
                // When nobody listens any more, nobody misses it.
                let _ = sender.blocking_send(Err(error));
            }
        });
        Ok(Response::new(stream(receiver)))
    }

    async fn status(&self, request: Request<StatusRequest>) -> Result<Response<StatusResponse>, Status> {
        // Clients cannot begin to write anything.
        Err(Status::not_found(format!("ref {}: not found", request.into_inner().r#ref)))
    }

    async fn list_statuses(
        &self,
        request: Request<ListStatusesRequest>,
    ) -> Result<Response<ListStatusesResponse>, Status> {
        Filters::parse(&request.into_inner().filters)?;
        Ok(Response::new(ListStatusesResponse::default()))
    }

    async fn write(
        &self,
        _: Request<Streaming<WriteContentRequest>>,
    ) -> Result<Response<BoxStream<'static, Result<WriteContentResponse, Status>>>, Status> {
        Err(read_only("Write"))
    }

    async fn abort(&self, _: Request<AbortRequest>) -> Result<Response<Nothing>, Status> {
        Err(read_only("Abort"))
    }

    async fn update(&self, _: Request<UpdateRequest>) -> Result<Response<UpdateResponse>, Status> {
        Err(read_only("Update"))
    }

    async fn delete(&self, _: Request<DeleteContentRequest>) -> Result<Response<Nothing>, Status> {
        Err(read_only("Delete"))
    }
}

/// What writes into the store is not for clients of builds.
fn read_only(what: &str) -> Status {
    Status::unimplemented(format!("content {what} is not supported: what builds made can be read only"))
}

/// Sends what there is of all that [`find`] finds, as far as a filter means it, until nobody wants to know. Blocks.
fn list(
    state: &AppState,
    filters: &Filters,
    sender: &mpsc::Sender<Result<ListContentResponse, Status>>,
) -> Result<(), Status> {
    let mut batch = Vec::new();
    let mut tell = |digest: &Digest, bytes: u64| {
        let text = digest.to_string();
        if filters.mean(|field| (field == "digest").then_some(&text)) {
            batch.push(Info { digest: text.clone(), size: i64::try_from(bytes).unwrap_or(i64::MAX) });
        }
        batch.len() < LISTED
            || sender.blocking_send(Ok(ListContentResponse { info: std::mem::take(&mut batch) })).is_ok()
    };
    let content = &state.stores.content;
    let mut is_wanted = true;
    content
        .walk(&mut |blob| {
            is_wanted = tell(&blob.digest, blob.size);
            is_wanted
        })
        .map_err(|error| internal(&error))?;
    let builds = state.history.get().map(|history| history.builds()).transpose();
    let mut documents = BTreeMap::new();
    for build in builds.map_err(|error| internal(&error))?.unwrap_or_default() {
        documents.extend(build.log.map(|log| (log.digest, log.bytes)));
        documents.extend(build.attachments.into_iter().map(|one| (one.digest, one.bytes)));
    }
    let images = state.stores.images.list().map_err(|error| internal(&error))?;
    let configs = images.into_iter().map(|image| (image.id.to_string(), image.config.len() as u64));
    documents.extend(configs);
    for (text, bytes) in documents {
        let Ok(digest) = Digest::parse(&text) else { continue };
        // Blobs are told already.
        if is_wanted && content.info(&digest).map_err(|error| internal(&error))?.is_none() {
            is_wanted = tell(&digest, bytes);
        }
    }
    if is_wanted && !batch.is_empty() {
        // When nobody wants it any more, nobody misses it.
        let _ = sender.blocking_send(Ok(ListContentResponse { info: batch }));
    }
    Ok(())
}

/// What a thread sends.
fn stream<T: Send + 'static>(receiver: mpsc::Receiver<T>) -> BoxStream<'static, T> {
    let next = |mut receiver: mpsc::Receiver<_>| async move { Some((receiver.recv().await?, receiver)) };
    stream::unfold(receiver, next).boxed()
}

/// Sends bytes until there are no more, or nobody wants them. Blocks.
fn send(
    mut blob: Blob,
    mut offset: u64,
    size: u64,
    sender: &mpsc::Sender<Result<ReadContentResponse, Status>>,
) {
    let end = offset + size;
    while offset < end {
        let mut data = Vec::new();
        let wanted = (end - offset).min(CHUNK as u64);
        let chunk = match blob.reader.by_ref().take(wanted).read_to_end(&mut data) {
            Ok(0) => Err(Status::data_loss(format!("it ends {} bytes too early", end - offset))),
            Ok(read) => {
                let chunk = ReadContentResponse { offset: i64::try_from(offset).unwrap_or(i64::MAX), data };
                offset += read as u64;
                Ok(chunk)
            }
            Err(error) => Err(Status::internal(chain(&error))),
        };
        let is_last = chunk.is_err();
        if sender.blocking_send(chunk).is_err() || is_last {
            return;
        }
    }
}
