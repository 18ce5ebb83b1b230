//! Clients that say what is to be left behind when they have seen a result, and clients that do not know of it.

use std::collections::BTreeMap;

use lapstrake_api_proto::exporter::{
    ExporterRequest, FinalizeExportRequest, FinalizeExportResponse, FindExportersRequest,
    FindExportersResponse,
    exporter_server::{Exporter, ExporterServer},
};
use lapstrake_session::{Error, WantedOutput};
use tonic::{Request, Response, Status, service::Routes};

use crate::content::connect;

/// Wants what it is told of, each as an output of that type; is content with an answer that names an image.
struct Wants;

#[tonic::async_trait]
impl Exporter for Wants {
    async fn find_exporters(
        &self,
        request: Request<FindExportersRequest>,
    ) -> Result<Response<FindExportersResponse>, Status> {
        let FindExportersRequest { metadata, refs } = request.into_inner();
        if refs.is_empty() {
            return Err(Status::unavailable("no exporter callback registered"));
        }
        let said = |key: &String| String::from_utf8(metadata[key].clone()).unwrap();
        let attrs = metadata.keys().map(|key| (key.clone(), said(key))).collect();
        let exporters =
            refs.into_iter().map(|r#type| ExporterRequest { r#type, attrs: Clone::clone(&attrs) });
        Ok(Response::new(FindExportersResponse { exporters: exporters.collect() }))
    }

    async fn finalize_export(
        &self,
        request: Request<FinalizeExportRequest>,
    ) -> Result<Response<FinalizeExportResponse>, Status> {
        match request.into_inner().exporter_response.contains_key("image.name") {
            true => Ok(Response::new(FinalizeExportResponse {})),
            false => Err(Status::failed_precondition("no image")),
        }
    }
}

#[tokio::test]
async fn a_client_says_what_it_wants_and_whether_it_is_content() {
    let caller = connect(Routes::new(ExporterServer::new(Wants))).await;
    let metadata = BTreeMap::from([("key".to_owned(), b"value".to_vec())]);
    let wanted = caller.find_outputs(metadata.clone(), vec!["local".to_owned()]).await.unwrap();
    let attrs = BTreeMap::from([("key".to_owned(), "value".to_owned())]);
    assert_eq!(wanted, [WantedOutput { kind: "local".to_owned(), attrs }]);
    // Unavailable: nobody there who would answer.
    assert_eq!(caller.find_outputs(metadata, Vec::new()).await.unwrap(), []);
    let named = BTreeMap::from([("image.name".to_owned(), "x".to_owned())]);
    caller.finish_outputs(named).await.unwrap();
    let refused = caller.finish_outputs(BTreeMap::new()).await.unwrap_err();
    assert!(matches!(&refused, Error::Call { status, .. } if status.message() == "no image"), "{refused:?}");
}

#[tokio::test]
async fn a_client_that_does_not_know_of_it_wants_nothing() {
    let caller = connect(Routes::default()).await;
    assert_eq!(caller.find_outputs(BTreeMap::new(), vec!["a".to_owned()]).await.unwrap(), []);
    caller.finish_outputs(BTreeMap::new()).await.unwrap();
}
