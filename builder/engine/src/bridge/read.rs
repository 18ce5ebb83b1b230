//! Reading files of results.

use std::os::fd::BorrowedFd;

use lapstrake_api_proto::fsutil::Stat;

use super::{
    Bridge,
    files::{self, FileError, FileRange},
};
use crate::{EngineError, StepError};

impl Bridge {
    /// The bytes of a file, or a part of them.
    pub(crate) async fn read_file(
        &self,
        id: &str,
        path: String,
        range: Option<FileRange>,
    ) -> Result<Vec<u8>, EngineError> {
        self.look(id, move |root| files::read_file(root, &path, range)).await
    }

    /// What is in a directory.
    pub(crate) async fn read_dir(
        &self,
        id: &str,
        path: String,
        pattern: String,
    ) -> Result<Vec<Stat>, EngineError> {
        self.look(id, move |root| files::read_dir(root, &path, &pattern)).await
    }

    /// What a path leads to.
    pub(crate) async fn stat_file(&self, id: &str, path: String) -> Result<Stat, EngineError> {
        self.look(id, move |root| files::stat_file(root, &path)).await
    }

    /// Looks into a result, once it is there.
    async fn look<T: Send + 'static>(
        &self,
        id: &str,
        look: impl FnOnce(BorrowedFd<'_>) -> Result<T, FileError> + Send + 'static,
    ) -> Result<T, EngineError> {
        let tree = self.evaluate(&self.find(id)?).await?;
        let stores = self.engine.stores().clone();
        let looked = StepError::blocking(move || -> Result<Result<T, FileError>, StepError> {
            match stores.open(&tree)? {
                Some(open) => Ok(look(open.root())),
                // Nothing is as an empty directory.
                None => {
                    let empty = tempfile::tempdir()
                        .map_err(|source| StepError::Io { what: "an empty directory", source })?;
                    let flags = rustix::fs::OFlags::PATH | rustix::fs::OFlags::DIRECTORY;
                    let root = rustix::fs::open(empty.path(), flags, rustix::fs::Mode::empty()).map_err(
                        |errno| StepError::Io { what: "an empty directory", source: errno.into() },
                    )?;
                    Ok(look(std::os::fd::AsFd::as_fd(&root)))
                }
            }
        });
        Ok(looked.await??)
    }
}
