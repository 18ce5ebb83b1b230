//! A repository's tags.

use lapstrake_layerstore_oci::Reference;
use reqwest::{
    Method, Response,
    header::{HeaderMap, LINK},
};
use serde::Deserialize;

use crate::{
    Access, RegistryClient, RegistryError,
    blob::malformed,
    client::{Request, Subject, Target, no_body},
    config::Endpoint,
    transport::Topic,
};

/// Longest page read.
const MAX_PAGE: u64 = 4 << 20;
/// Most tags of one repository.
const MAX_TAGS: usize = 100_000;
/// Tags asked for at a time; a registry may give fewer, or all.
const PAGE: &str = "1000";

impl RegistryClient {
    /// All tags of a repository, page by page, as names in the registry's order. Tags that no reference can have are left out.
    pub async fn tags(&self, repository: &Reference) -> Result<Vec<Reference>, RegistryError> {
        let repository = repository.clone().trimmed();
        let what = format!("tags of {}", repository.familiar_name());
        let subject = Subject::new(&repository, Access::Pull, what);
        let endpoints = self.shared.config.endpoints(&repository, Access::Pull);
        let tags = self.first_of(&endpoints, |e| Box::pin(self.tags_at(e, &subject))).await?;
        Ok(tags.into_iter().filter_map(|tag| repository.clone().with_tag(&tag).ok()).collect())
    }

    async fn tags_at(
        &self,
        endpoint: &Endpoint,
        subject: &Subject<'_>,
    ) -> Result<Vec<String>, RegistryError> {
        #[derive(Deserialize)]
        struct Page {
            // `null` when there are none.
            tags: Option<Vec<String>>,
        }
        let path = format!("/{}/tags/list", subject.reference.path());
        let mut target = Target::Api(path, vec![("n", PAGE.to_owned())]);
        let mut tags = Vec::new();
        loop {
            let request = Request { method: Method::GET, target, headers: HeaderMap::new(), body: &no_body };
            let response = self.send(endpoint, subject, &request).await?;
            if !response.status().is_success() {
                return Err(self.failure(endpoint, subject, response).await);
            }
            let next = next_page(&response);
            let topic = Topic { host: &endpoint.host, what: &subject.what };
            let bytes = self.shared.transport.read_all(topic, response, MAX_PAGE).await?;
            let page: Page = serde_json::from_slice(&bytes)
                .map_err(|error| malformed(endpoint, subject, error.to_string()))?;
            let page = page.tags.unwrap_or_default();
            // A registry that leads in circles comes to an end, too.
            let is_last = page.is_empty();
            tags.extend(page);
            if tags.len() > MAX_TAGS {
                return Err(malformed(endpoint, subject, format!("more than {MAX_TAGS} tags")));
            }
            match next {
                Some(next) if !is_last => target = Target::Url(next),
                _ => return Ok(tags),
            }
        }
    }
}

/// `Link: </v2/…/tags/list?last=…>; rel="next"` (distribution spec, "Listing Tags"), at the same registry.
fn next_page(response: &Response) -> Option<url::Url> {
    let link = response.headers().get(LINK)?.to_str().ok()?;
    let (address, attributes) = link.trim().strip_prefix('<')?.split_once('>')?;
    let is_next = attributes.split(';').any(|one| matches!(one.trim(), "rel=\"next\"" | "rel=next"));
    let next = response.url().join(address).ok().filter(|_| is_next)?;
    (next.origin() == response.url().origin()).then_some(next)
}
