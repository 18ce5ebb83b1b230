//! What says that it is about a manifest (distribution specification, "Listing Referrers").

use lapstrake_layerstore_oci::{Descriptor, Digest, Index, Reference};
use reqwest::{
    Method, StatusCode,
    header::{ACCEPT, HeaderMap, HeaderValue},
};

use crate::{
    Access, RegistryClient, RegistryError,
    blob::malformed,
    client::{Request, Subject, Target, no_body},
    config::Endpoint,
    transport::Topic,
};

const INDEX: &str = "application/vnd.oci.image.index.v1+json";

impl RegistryClient {
    /// The manifests of a repository whose subject is this digest. A registry that cannot tell is asked for the tag that stands for the list there
    /// (`sha256-<hex>`); without that, there are none.
    pub async fn referrers(
        &self,
        repository: &Reference,
        digest: &Digest,
    ) -> Result<Vec<Descriptor>, RegistryError> {
        let repository = repository.clone().trimmed();
        let what = format!("referrers of {}@{digest}", repository.familiar_name());
        let subject = Subject::new(&repository, Access::Pull, what);
        let endpoints = self.shared.config.endpoints(&repository, Access::Pull);
        self.first_of(&endpoints, |endpoint| Box::pin(self.referrers_at(endpoint, &subject, digest))).await
    }

    async fn referrers_at(
        &self,
        endpoint: &Endpoint,
        subject: &Subject<'_>,
        digest: &Digest,
    ) -> Result<Vec<Descriptor>, RegistryError> {
        let path = subject.reference.path();
        let tag = format!("{}-{}", digest.algorithm(), digest.hex());
        for path in [format!("/{path}/referrers/{digest}"), format!("/{path}/manifests/{tag}")] {
            let headers = HeaderMap::from_iter([(ACCEPT, HeaderValue::from_static(INDEX))]);
            let target = Target::Api(path, Vec::new());
            let request = Request { method: Method::GET, target, headers, body: &no_body };
            let response = self.send(endpoint, subject, &request).await?;
            if response.status() == StatusCode::NOT_FOUND {
                continue;
            }
            if !response.status().is_success() {
                return Err(self.failure(endpoint, subject, response).await);
            }
            let topic = Topic { host: &endpoint.host, what: &subject.what };
            let limit = self.shared.options.max_manifest;
            let bytes = self.shared.transport.read_all(topic, response, limit).await?;
            let index =
                Index::from_json(&bytes).map_err(|error| malformed(endpoint, subject, error.to_string()))?;
            return Ok(index.manifests);
        }
        Ok(Vec::new())
    }
}
