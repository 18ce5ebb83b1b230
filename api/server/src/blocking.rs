//! Store calls block; they run on threads that may.

use crate::ApiError;

/// Runs blocking work. A panic in it is passed on.
pub(crate) async fn blocking<T, E>(
    work: impl FnOnce() -> Result<T, E> + Send + 'static,
) -> Result<T, ApiError>
where
    T: Send + 'static,
    E: Into<ApiError> + Send + 'static,
{
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result.map_err(Into::into),
        Err(error) => std::panic::resume_unwind(error.into_panic()),
    }
}
