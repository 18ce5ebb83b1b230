//! Contexts that come with a request: a tar stream becomes a tree in the store while it arrives.

use std::io::Read;

use lapstrake_layerstore_diff::{Limits, decompress, unpack_context};
use lapstrake_layerstore_store::Tree;

use crate::{Engine, EngineError, StepError};

/// A build context that is in the store. It goes with the last build that uses it.
#[derive(Debug, Clone)]
pub struct ReceivedContext {
    tree: Tree,
    /// Whether the modes in its archive were permissions alone, without the file's type.
    bare_modes: bool,
}

impl ReceivedContext {
    /// Its files.
    pub fn tree(&self) -> &Tree {
        &self.tree
    }

    /// Whether the modes in its archive were permissions alone.
    pub(crate) fn bare_modes(&self) -> bool {
        self.bare_modes
    }
}

impl Engine {
    /// Unpacks a tar stream, compressed or not, into the store. Bytes are never kept in memory.
    ///
    /// `body` is read on a blocking thread; ending it early with an error ends the work. Errors name the entry.
    pub async fn receive_context(
        &self,
        body: impl Read + Send + 'static,
    ) -> Result<ReceivedContext, EngineError> {
        let stores = self.stores().clone();
        let unpack = move || -> Result<ReceivedContext, EngineError> {
            let draft = stores.begin(&Tree::empty())?;
            let unpacked = {
                let open = draft.open()?;
                let tar = decompress(body).map_err(EngineError::Context)?;
                unpack_context(tar, &open.path(), &Limits::default()).map_err(EngineError::Context)?
            };
            draft.mark_received()?;
            Ok(ReceivedContext { tree: draft.commit()?, bare_modes: unpacked.bare_modes })
        };
        match tokio::task::spawn_blocking(unpack).await {
            Ok(received) => received,
            Err(panic) => std::panic::resume_unwind(panic.into_panic()),
        }
    }

    /// The same for a request whose body is a Dockerfile alone: a context that holds just that, under `name`.
    pub async fn receive_dockerfile(
        &self,
        name: &str,
        dockerfile: Vec<u8>,
    ) -> Result<ReceivedContext, EngineError> {
        let mut archive = tar::Builder::new(Vec::new());
        let mut header = tar::Header::new_gnu();
        header.set_size(dockerfile.len() as u64);
        header.set_mode(0o644);
        let body = archive
            .append_data(&mut header, name, dockerfile.as_slice())
            .and_then(|()| archive.into_inner())
            .map_err(|source| StepError::Io { what: "a context of one Dockerfile", source })?;
        self.receive_context(std::io::Cursor::new(body)).await
    }
}
