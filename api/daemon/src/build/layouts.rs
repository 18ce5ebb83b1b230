//! OCI layouts on this machine, as the engine reads those of any client: through the session.

use std::{
    collections::BTreeMap,
    fs::File,
    io::{self, Read},
    path::PathBuf,
    pin::Pin,
    sync::Arc,
};

use futures::{Stream, StreamExt as _};
use lapstrake_api_proto::content::{
    Info, InfoRequest, InfoResponse, ReadContentRequest, ReadContentResponse, content_server::Content,
};
use lapstrake_layerstore_oci::Digest;
use lapstrake_session::CONTENT_STORE_HEADER;
use rustix::fs::{Mode, OFlags};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status};

/// Bytes in one message.
const CHUNK: usize = 1 << 20;
/// Messages read and not yet sent.
const AHEAD: usize = 2;

/// Layouts, by the ids that the build has for them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Layouts(Arc<BTreeMap<String, PathBuf>>);

impl Layouts {
    pub(super) fn new(by_id: BTreeMap<String, PathBuf>) -> Self {
        Self(Arc::new(by_id))
    }

    /// A blob, and its size.
    fn open<T>(&self, request: &Request<T>, digest: &str) -> Result<(File, u64), Status> {
        let id = request.metadata().get(CONTENT_STORE_HEADER).and_then(|id| id.to_str().ok());
        let id = id.and_then(|id| id.strip_prefix("oci:")).unwrap_or_default();
        let layout = self.0.get(id).ok_or_else(|| Status::not_found(format!("unknown store {id}")))?;
        // What is a digest has no path in it.
        let digest = Digest::parse(digest).map_err(|error| Status::invalid_argument(error.to_string()))?;
        let path = layout.join("blobs").join(digest.algorithm().as_str()).join(digest.hex());
        let failed = |error: io::Error| match error.kind() {
            io::ErrorKind::NotFound => Status::not_found(format!("content {digest}: not found")),
            _ => Status::internal(format!("{}: {error}", path.display())),
        };
        let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK;
        let file = rustix::fs::open(&path, flags, Mode::empty()).map_err(|errno| failed(errno.into()))?;
        let file = File::from(file);
        let about = file.metadata().map_err(failed)?;
        if !about.is_file() {
            return Err(Status::internal(format!("{} is not a file", path.display())));
        }
        Ok((file, about.len()))
    }
}

#[tonic::async_trait]
impl Content for Layouts {
    async fn info(&self, request: Request<InfoRequest>) -> Result<Response<InfoResponse>, Status> {
        let digest = request.get_ref().digest.clone();
        let (_, size) = self.open(&request, &digest)?;
        let size = i64::try_from(size).map_err(|_| Status::out_of_range("too large"))?;
        Ok(Response::new(InfoResponse { info: Some(Info { digest, size }) }))
    }

    async fn read(
        &self,
        request: Request<ReadContentRequest>,
    ) -> Result<Response<Pin<Box<dyn Stream<Item = Result<ReadContentResponse, Status>> + Send>>>, Status>
    {
        let ReadContentRequest { digest, offset, size } = request.get_ref().clone();
        if offset != 0 || size != 0 {
            return Err(Status::unimplemented("blobs are read whole"));
        }
        let (mut file, _) = self.open(&request, &digest)?;
        let (out, chunks) = mpsc::channel(AHEAD);
        tokio::task::spawn_blocking(move || {
            let mut offset = 0_i64;
            loop {
                let mut data = Vec::with_capacity(CHUNK);
                let read = file.by_ref().take(CHUNK as u64).read_to_end(&mut data);
                let chunk = match read {
                    Ok(0) => return,
                    Ok(_) => Ok(ReadContentResponse { offset, data }),
                    Err(error) => Err(Status::internal(error.to_string())),
                };
                let (length, failed) = (chunk.as_ref().map_or(0, |chunk| chunk.data.len()), chunk.is_err());
                offset = offset.saturating_add(i64::try_from(length).unwrap_or(i64::MAX));
                if out.blocking_send(chunk).is_err() || failed {
                    return;
                }
            }
        });
        Ok(Response::new(ReceiverStream::new(chunks).boxed()))
    }
}
