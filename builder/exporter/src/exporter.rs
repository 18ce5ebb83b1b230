//! The exporter: one request to one output.

use lapstrake_builder_progress::VertexHandle;
use lapstrake_layerstore_store::Stores;
use lapstrake_session::{ExporterId, SessionCaller, SessionId, Sessions, Wait};
use tokio_util::sync::CancellationToken;

use crate::{ExportError, ExportRequest, Exported, Output, PlatformResult, publish::Publishing};

/// Leaves behind what builds have built. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Exporter {
    pub(crate) stores: Stores,
}

/// An output that is made, and that others do not see yet.
#[derive(Debug, Default)]
pub struct Export {
    /// What was left behind.
    pub exported: Exported,
    pub(crate) publishing: Option<Publishing>,
}

impl Export {
    /// Whether [`Exporter::publish`] has nothing to do.
    pub fn is_public(&self) -> bool {
        self.publishing.is_none()
    }
}

impl From<Exported> for Export {
    fn from(exported: Exported) -> Self {
        Self { exported, publishing: None }
    }
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
    number: ExporterId,
}

impl Client<'_> {
    pub(crate) async fn caller(&self) -> Result<SessionCaller, ExportError> {
        let id = self.session.as_ref().ok_or(ExportError::NoSession { output: self.output })?;
        Ok(self.sessions.get(id.as_str(), Wait::default()).await?)
    }

    /// What is being exported, for errors.
    pub(crate) fn output(&self) -> &'static str {
        self.output
    }

    /// Which of the client's outputs it is.
    pub(crate) fn number(&self) -> ExporterId {
        self.number
    }
}

impl Exporter {
    /// An exporter of what is in these stores.
    pub fn new(stores: Stores) -> Self {
        Self { stores }
    }

    /// Leaves a build's results behind, all but what others would see ([`Exporter::publish`]).
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
        let Some(output) = request.output.name() else { return Ok(Export::default()) };
        let client = Client { sessions, session: request.session.clone(), output, number: request.number };
        if request.results.is_empty() {
            return Err(ExportError::NoResults);
        }
        request.output.admits(request.multi_platform)?;
        let work = async {
            match request.output.clone() {
                Output::CacheOnly => Ok(Export::default()),
                Output::Image(output) => self.image(request, output, vertex, cancel).await,
                Output::Local(output) => self.local(request, output, &client, vertex, cancel).await,
                Output::Tar(output) => self.tar(request, output, &client, vertex, cancel).await,
                Output::Docker(output) => {
                    self.layout(request, output, true, &client, vertex, cancel).await.map(Export::from)
                }
                Output::Oci(output) => {
                    self.layout(request, output, false, &client, vertex, cancel).await.map(Export::from)
                }
            }
        };
        tokio::select! {
            result = work => result,
            () = cancel.cancelled() => Err(ExportError::Canceled),
        }
    }
}

/// The result of an output that has room for one.
pub(crate) fn only(mut results: Vec<PlatformResult>) -> Result<PlatformResult, ExportError> {
    match results.pop() {
        None => Err(ExportError::NoResults),
        Some(result) if results.is_empty() => Ok(result),
        Some(_) => Err(ExportError::SeveralPlatforms),
    }
}
