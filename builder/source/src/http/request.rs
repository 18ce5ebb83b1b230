//! Asking a server, or the client that uploads.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use futures::{StreamExt, stream::BoxStream};
use lapstrake_builder_cache::RecordKind;
use lapstrake_layerstore_oci::Digest;
use lapstrake_layerstore_store::Tree;
use lapstrake_session::{SessionCaller, Wait};
use reqwest::{
    Method, Response, StatusCode,
    header::{
        ACCEPT_ENCODING, AUTHORIZATION, CONTENT_DISPOSITION, ETAG, HeaderMap, HeaderName, HeaderValue,
        IF_NONE_MATCH, LAST_MODIFIED,
    },
    redirect::Policy,
};

use super::{
    HttpSpec,
    name::{etag, file_name, parse_http_date},
    save::{Saved, save},
};
use crate::{SourceContext, SourceError, error::chain, sources::Shared};

/// Redirects followed, as Go's client does.
pub(crate) const MAX_REDIRECTS: usize = 10;

/// What is behind the URL.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Resolved {
    pub(super) digest: Digest,
    pub(super) filename: String,
    /// Seconds since 1970.
    pub(super) modified: Option<i64>,
    /// The file, once it is here.
    pub(super) tree: Option<Tree>,
}

/// What is remembered of a downloaded file.
#[derive(Debug, Clone, serde::Serialize, serde::Deserialize)]
struct Memory {
    digest: String,
    filename: String,
    etag: Option<String>,
    modified: Option<i64>,
}

/// A client for all URLs.
pub(crate) fn client(
    connect: Duration,
    stall: Duration,
    redirects: Policy,
) -> Result<reqwest::Client, reqwest::Error> {
    reqwest::Client::builder()
        // Servers know BuildKit by its name, and may answer it otherwise.
        .user_agent(concat!("lapstrake/", env!("CARGO_PKG_VERSION"), " buildkit/v0.32"))
        .connect_timeout(connect)
        .read_timeout(stall)
        // Its policy also takes `Authorization` and the like off when a redirect leads to another host or port.
        .redirect(redirects)
        .referer(false)
        .build()
}

/// Finds out what is behind the URL, and gets it unless it is here.
pub(super) async fn resolve(
    shared: &Arc<Shared>,
    spec: &Arc<HttpSpec>,
    cx: &SourceContext,
) -> Result<Resolved, SourceError> {
    let key = spec.memory_key();
    // Two steps that want the same file wait for one download.
    let _turn = cx.or_canceled(shared.turns.take(&key)).await?;
    if let Some(found) = shared.downloads.recall(cx, &key) {
        return Ok(found);
    }
    let found = cx.or_canceled(resolve_now(shared, spec, cx, &key)).await??;
    shared.downloads.keep(cx, &key, &found, &shared.sessions);
    Ok(found)
}

async fn resolve_now(
    shared: &Arc<Shared>,
    spec: &Arc<HttpSpec>,
    cx: &SourceContext,
    key: &str,
) -> Result<Resolved, SourceError> {
    if spec.is_upload() {
        return upload(shared, spec, cx).await;
    }
    let authorization = authorization(shared, spec, cx).await?;
    if let Some((tree, memory)) = recall(shared, key).await?
        && let Some(tag) = &memory.etag
    {
        // Some servers have entity tags, and do not understand being asked by them: so first without.
        let mut headers = HeaderMap::new();
        headers.insert(ACCEPT_ENCODING, HeaderValue::from_static("gzip"));
        if let Ok(value) = HeaderValue::from_str(tag) {
            headers.insert(IF_NONE_MATCH, value);
        }
        let head = send(shared, spec, Method::HEAD, headers.clone(), authorization.clone()).await;
        if head.is_ok_and(|head| is_same(&head, tag)) {
            return remembered(tree, &memory);
        }
        headers.remove(ACCEPT_ENCODING);
        let answer = send(shared, spec, Method::GET, headers, authorization).await?;
        if answer.status() == StatusCode::NOT_MODIFIED {
            return remembered(tree, &memory);
        }
        return download(shared, spec, answer, key).await;
    }
    let answer = send(shared, spec, Method::GET, HeaderMap::new(), authorization).await?;
    download(shared, spec, answer, key).await
}

/// Gets the file, which must be the one with this digest.
pub(super) async fn fetch(
    shared: &Arc<Shared>,
    spec: &Arc<HttpSpec>,
    cx: &SourceContext,
    expected: &Digest,
) -> Result<Tree, SourceError> {
    let key = spec.memory_key();
    let _turn = cx.or_canceled(shared.turns.take(&key)).await?;
    let work = async {
        if let Some((tree, memory)) = recall(shared, &key).await?
            && memory.digest == expected.as_str()
        {
            return Ok(tree);
        }
        let found = if spec.is_upload() {
            upload(shared, spec, cx).await?
        } else {
            let authorization = authorization(shared, spec, cx).await?;
            let answer = send(shared, spec, Method::GET, HeaderMap::new(), authorization).await?;
            download(shared, spec, answer, &key).await?
        };
        match found {
            Resolved { digest, tree: Some(tree), .. } if digest == *expected => Ok(tree),
            Resolved { digest, .. } => Err(SourceError::Checksum {
                origin: spec.origin(),
                what: "file",
                expected: expected.clone(),
                actual: digest,
            }),
        }
    };
    cx.or_canceled(work).await?
}

/// Whether the answer to a `HEAD` speaks of the file with this entity tag.
fn is_same(answer: &Response, tag: &str) -> bool {
    let own = answer.headers().get(ETAG).and_then(|value| value.to_str().ok());
    match answer.status() {
        StatusCode::OK => own.is_some_and(|own| etag(own) == etag(tag)),
        // One tag was asked about, so that is what has not changed.
        StatusCode::NOT_MODIFIED => own.is_none_or(|own| etag(own) == etag(tag)),
        _ => false,
    }
}

fn remembered(tree: Tree, memory: &Memory) -> Result<Resolved, SourceError> {
    let digest = Digest::parse(&memory.digest)
        .map_err(|error| SourceError::Identifier { origin: memory.digest.clone(), why: error.to_string() })?;
    Ok(Resolved { digest, filename: memory.filename.clone(), modified: memory.modified, tree: Some(tree) })
}

/// The file as it was when it was last downloaded, if it is still here.
async fn recall(shared: &Arc<Shared>, key: &str) -> Result<Option<(Tree, Memory)>, SourceError> {
    let (shared, key) = (Arc::clone(shared), key.to_owned());
    SourceError::blocking(move || {
        let Some(previous) = shared.cache.previous_context(&key)? else { return Ok(None) };
        // What cannot be read is as good as nothing.
        let memory: Option<Memory> = serde_json::from_slice(&previous.listing).ok();
        Ok::<_, SourceError>(memory.map(|memory| (previous.tree, memory)))
    })
    .await
}

async fn send(
    shared: &Shared,
    spec: &HttpSpec,
    method: Method,
    mut headers: HeaderMap,
    authorization: Option<HeaderValue>,
) -> Result<Response, SourceError> {
    for header in &spec.headers {
        let name = HeaderName::from_bytes(header.name.as_bytes());
        if let (Ok(name), Ok(value)) = (name, HeaderValue::from_str(&header.value)) {
            headers.insert(name, value);
        }
    }
    if let Some(authorization) = authorization {
        headers.insert(AUTHORIZATION, authorization);
    }
    let client =
        shared.http.as_ref().map_err(|why| SourceError::Http { origin: spec.origin(), why: why.clone() })?;
    let answer = client.request(method, spec.url.clone()).headers(headers).send();
    answer.await.map_err(|error| failed(spec, error))
}

/// An error's words, without the URL: it may have a password.
fn failed(spec: &HttpSpec, error: reqwest::Error) -> SourceError {
    SourceError::Http { origin: spec.origin(), why: chain(&error.without_url()) }
}

/// Takes the file from an answer, and remembers it.
async fn download(
    shared: &Arc<Shared>,
    spec: &Arc<HttpSpec>,
    answer: Response,
    key: &str,
) -> Result<Resolved, SourceError> {
    if !answer.status().is_success() {
        return Err(SourceError::HttpStatus { origin: spec.origin(), status: answer.status().as_u16() });
    }
    let header = |name: HeaderName| {
        answer.headers().get(name).map(|value| String::from_utf8_lossy(value.as_bytes()).into_owned())
    };
    let filename = file_name(&spec.url, spec.filename.as_deref(), header(CONTENT_DISPOSITION).as_deref());
    let modified = header(LAST_MODIFIED).as_deref().and_then(parse_http_date);
    let tag = header(ETAG).map(|tag| etag(&tag).to_owned());
    let limit = shared.limits.http_bytes;
    if answer.content_length().is_some_and(|length| length > limit) {
        return Err(SourceError::TooLarge { origin: spec.origin(), limit });
    }
    let content = answer.bytes_stream().map(|chunk| chunk.map_err(|error| failed(spec, error))).boxed();
    let Saved { tree, digest } = save(&shared.stores, spec.file(&filename, modified), limit, content).await?;
    let memory = Memory { digest: digest.to_string(), filename: filename.clone(), etag: tag, modified };
    remember(shared, spec, key, &tree, &memory).await?;
    Ok(Resolved { digest, filename, modified, tree: Some(tree) })
}

/// What is remembered names only a tree that is committed.
async fn remember(
    shared: &Arc<Shared>,
    spec: &HttpSpec,
    key: &str,
    tree: &Tree,
    memory: &Memory,
) -> Result<(), SourceError> {
    let listing = serde_json::to_vec(memory).expect("texts and numbers are JSON");
    let description = format!("http url {}", spec.origin());
    let (shared, key, tree) = (Arc::clone(shared), key.to_owned(), tree.clone());
    SourceError::blocking(move || {
        // First, so that it counts as what it is and not as a client's directory.
        shared.cache.record(&tree, RecordKind::Regular, &description)?;
        shared.cache.remember_context(&key, &tree, &listing, &description)
    })
    .await
}

/// Takes a file that a client uploads.
async fn upload(
    shared: &Arc<Shared>,
    spec: &Arc<HttpSpec>,
    cx: &SourceContext,
) -> Result<Resolved, SourceError> {
    let named = || SourceError::session(&spec.origin());
    let mut last = None;
    for id in &cx.sessions {
        let begun = async {
            let caller: SessionCaller = shared.sessions.get(id.as_str(), Wait::default()).await?;
            caller.upload(spec.url.path()).await
        };
        match begun.await {
            Err(error) => last = Some(named()(error)),
            Ok(upload) => {
                let content: BoxStream<'_, Result<Bytes, SourceError>> =
                    upload.map(|chunk| chunk.map_err(named())).boxed();
                let filename = file_name(&spec.url, spec.filename.as_deref(), None);
                let limit = shared.limits.http_bytes;
                let Saved { tree, digest } =
                    save(&shared.stores, spec.file(&filename, None), limit, content).await?;
                return Ok(Resolved { digest, filename, modified: None, tree: Some(tree) });
            }
        }
    }
    Err(last.unwrap_or_else(|| named()(lapstrake_session::Error::NoActiveSessions)))
}

/// The `Authorization` header that a client has for the server, as BuildKit looks for it: the secret that the op names, or else one named after the
/// host.
async fn authorization(
    shared: &Shared,
    spec: &HttpSpec,
    cx: &SourceContext,
) -> Result<Option<HeaderValue>, SourceError> {
    let host = spec.url.host_str().unwrap_or_default();
    let wanted: Vec<(String, &str)> = match &spec.auth_secret {
        Some(name) => vec![(name.clone(), "")],
        None => {
            vec![(format!("HTTP_AUTH_TOKEN_{host}"), "Bearer "), (format!("HTTP_AUTH_HEADER_{host}"), "")]
        }
    };
    for (name, prefix) in wanted {
        let found = shared.sessions.any(&cx.sessions, |caller| {
            let name = name.clone();
            async move { caller.secret(&name).await }
        });
        match found.await {
            Ok(secret) => {
                let mut value = prefix.as_bytes().to_vec();
                value.extend(secret.expose().trim_ascii());
                let mut value = HeaderValue::from_bytes(&value).map_err(|_| SourceError::Http {
                    origin: spec.origin(),
                    why: format!("secret {name} cannot be sent as a header"),
                })?;
                value.set_sensitive(true);
                return Ok(Some(value));
            }
            Err(error) if spec.auth_secret.is_some() => {
                return Err(SourceError::session(&spec.origin())(error));
            }
            Err(_) => {}
        }
    }
    Ok(None)
}
