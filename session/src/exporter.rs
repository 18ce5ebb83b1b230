//! A client that says what is to be left behind when it has seen what was built (BuildKit's session exporter).

use std::collections::BTreeMap;

use lapstrake_api_proto::exporter::{
    FinalizeExportRequest, FindExportersRequest, exporter_client::ExporterClient,
};
use tonic::Code;

use crate::{Error, SessionCaller, channel};

const FIND: &str = "/moby.exporter.v1.Exporter/FindExporters";
const FINALIZE: &str = "/moby.exporter.v1.Exporter/FinalizeExport";

/// An output that a client wants, as it says it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WantedOutput {
    /// The exporter's type.
    pub kind: String,
    /// What the exporter is told.
    pub attrs: BTreeMap<String, String>,
}

impl SessionCaller {
    /// Asks the client what else is to be left behind: `metadata` is what the frontend says of the result, `refs` are the names by which the client may
    /// look at it through the build's bridge while it thinks, for as long as it likes. Nothing, of a client that wants none. Cancel-safe by drop.
    ///
    /// # Errors
    /// [`Error::Call`], [`Error::Closed`].
    pub async fn find_outputs(
        &self,
        metadata: BTreeMap<String, Vec<u8>>,
        refs: Vec<String>,
    ) -> Result<Vec<WantedOutput>, Error> {
        let request = FindExportersRequest { metadata: metadata.into_iter().collect(), refs };
        let mut client = ExporterClient::with_origin(self.channel(), channel::origin());
        let call = async { client.find_exporters(request).await };
        let Some(answer) = self.wanted(FIND, self.guard(FIND, call).await)? else { return Ok(Vec::new()) };
        let wanted = answer.into_inner().exporters.into_iter();
        Ok(wanted
            .map(|one| WantedOutput { kind: one.r#type, attrs: one.attrs.into_iter().collect() })
            .collect())
    }

    /// Tells the client what the exporters answered, if it wants to know. Cancel-safe by drop.
    ///
    /// # Errors
    /// [`Error::Call`] when the client is not content, [`Error::Closed`].
    pub async fn finish_outputs(&self, response: BTreeMap<String, String>) -> Result<(), Error> {
        let request = FinalizeExportRequest { exporter_response: response.into_iter().collect() };
        let mut client = ExporterClient::with_origin(self.channel(), channel::origin());
        let call = async { client.finalize_export(request).await };
        self.wanted(FINALIZE, self.guard(FINALIZE, call).await).map(drop)
    }

    /// A call that a client need not know: `None` where it does not, or has nobody who would answer.
    fn wanted<T>(&self, method: &'static str, result: Result<T, Error>) -> Result<Option<T>, Error> {
        match result {
            Ok(answer) => Ok(Some(answer)),
            Err(Error::Unsupported { .. }) => Ok(None),
            Err(Error::Call { status, .. }) if status.code() == Code::Unavailable => {
                tracing::debug!(session = %self.id(), method, "the client has nobody who would answer");
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }
}
