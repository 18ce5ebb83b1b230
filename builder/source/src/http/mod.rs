//! Files behind URLs: `http(s)://…`, and what a client uploads through its session, `http://buildkit-session/<id>`.

mod archive;
mod name;
mod request;
mod save;

use std::{path::Path, sync::Arc};

use futures::future::BoxFuture;
use lapstrake_builder_llb::pb;
use lapstrake_layerstore_oci::{Algorithm, Digest, gojson};
use lapstrake_layerstore_store::Tree;
use lapstrake_session::UPLOAD_HOST;
use rustix::fs::OFlags;
use url::Url;

use self::name::file_name;
pub(crate) use self::{
    name::safe_name,
    request::{MAX_REDIRECTS, Resolved, client},
    save::{FileSpec, Saved, save},
};
use crate::{
    Material, Source, SourceContext, SourceError, SourceFacts, SourceKind,
    attrs::{Attrs, shown},
    local::open_beneath,
    signature::{Demands, verify_pgp},
    sources::{Shared, cache_key},
};

/// The file's name where a URL is a build context, as BuildKit's frontend has it.
const CONTEXT_FILE: &str = "context";

/// Which file, as an op says it.
#[derive(Debug, Clone, PartialEq)]
struct HttpSpec {
    url: Url,
    /// The URL as the op has it, which is what keys are made of.
    text: String,
    checksum: Option<Digest>,
    filename: Option<String>,
    /// Permission bits; 0600 when 0.
    mode: u32,
    uid: u32,
    gid: u32,
    /// The secret that holds the `Authorization` header.
    auth_secret: Option<String>,
    /// Sorted by name.
    headers: Vec<Header>,
    signature: Option<HttpSignature>,
}

/// A detached OpenPGP signature that the file must have.
#[derive(Debug, Clone, PartialEq)]
struct HttpSignature {
    /// Armored.
    signature: String,
    /// Armored certificates.
    keys: String,
}

#[derive(Debug, Clone, PartialEq, serde::Serialize)]
#[serde(rename_all = "PascalCase")]
struct Header {
    name: String,
    value: String,
}

impl HttpSpec {
    fn parse(op: &pb::SourceOp) -> Result<Self, SourceError> {
        let url = Url::parse(&op.identifier).map_err(|error| SourceError::Identifier {
            origin: shown(&op.identifier),
            why: error.to_string(),
        })?;
        let attrs = Attrs::of(op);
        let checksum = match attrs.text("http.checksum") {
            None => None,
            Some(text) => {
                let digest =
                    Digest::parse(text).map_err(|error| attrs.invalid("http.checksum", text, error))?;
                if digest.algorithm() != Algorithm::Sha256 {
                    return Err(attrs.invalid(
                        "http.checksum",
                        text,
                        "only sha256 digests of files are known",
                    ));
                }
                Some(digest)
            }
        };
        let mode = attrs.go_number("http.perm")?;
        // BuildKit sends all `http.header.*` that it is given, and takes these two.
        let mut headers: Vec<Header> = attrs
            .prefixed("http.header.")
            .into_iter()
            .filter_map(|(name, value)| {
                let name = match name.to_ascii_lowercase().as_str() {
                    "accept" => "Accept",
                    "user-agent" => "User-Agent",
                    _ => return None,
                };
                Some(Header { name: name.to_owned(), value: value.to_owned() })
            })
            .collect();
        headers.sort_by(|a, b| a.name.cmp(&b.name));
        let spec = Self {
            url,
            text: op.identifier.clone(),
            checksum,
            filename: attrs.text("http.filename").map(str::to_owned),
            mode: mode & 0o777,
            uid: attrs.go_number("http.uid")?,
            gid: attrs.go_number("http.gid")?,
            auth_secret: attrs.text("http.authheadersecret").map(str::to_owned),
            headers,
            signature: match (attrs.text("http.sig.signature"), attrs.text("http.sig.pubkey")) {
                (None, None) => None,
                (Some(signature), Some(keys)) => {
                    Some(HttpSignature { signature: signature.to_owned(), keys: keys.to_owned() })
                }
                (signature, _) => {
                    let lacks = if signature.is_none() { "http.sig.signature" } else { "http.sig.pubkey" };
                    let why = "http signature verification requires both pubkey and signature";
                    return Err(attrs.invalid(lacks, "", why));
                }
            },
        };
        Ok(spec)
    }

    /// The URL for people: without a password.
    fn origin(&self) -> String {
        shown(self.url.as_str())
    }

    /// The file that its content is to be.
    fn file(&self, name: &str, modified: Option<i64>) -> FileSpec {
        let Self { mode, uid, gid, .. } = *self;
        FileSpec {
            origin: self.origin(),
            name: name.to_owned(),
            mode,
            uid,
            gid,
            modified: modified.unwrap_or(0),
        }
    }

    fn is_upload(&self) -> bool {
        self.url.host_str() == Some(UPLOAD_HOST)
    }

    /// What a downloaded file is remembered by: everything that makes a difference to it.
    fn memory_key(&self) -> String {
        #[derive(serde::Serialize)]
        struct Key<'a> {
            url: &'a str,
            filename: &'a Option<String>,
            mode: u32,
            uid: u32,
            gid: u32,
            auth_secret: &'a Option<String>,
            headers: &'a [Header],
        }
        let key = Key {
            url: &self.text,
            filename: &self.filename,
            mode: self.mode,
            uid: self.uid,
            gid: self.gid,
            auth_secret: &self.auth_secret,
            headers: &self.headers,
        };
        let json = serde_json::to_vec(&key).expect("texts and numbers are JSON");
        format!(":http:{}", Digest::sha256_of(json))
    }

    /// BuildKit's cache key (`source/http`, `formatCacheKey`).
    fn cache_key(&self, file: &Resolved) -> Digest {
        #[derive(serde::Serialize)]
        #[serde(rename_all = "PascalCase")]
        struct Key<'a> {
            filename: &'a str,
            perm: u32,
            #[serde(rename = "UID")]
            uid: u32,
            #[serde(rename = "GID")]
            gid: u32,
            checksum: &'a str,
            #[serde(skip_serializing_if = "Option::is_none")]
            last_mod_time: Option<String>,
            #[serde(skip_serializing_if = "Option::is_none")]
            auth_header_secret: &'a Option<String>,
            #[serde(skip_serializing_if = "<[Header]>::is_empty")]
            header: &'a [Header],
        }
        let key = Key {
            filename: &file.filename,
            perm: self.mode,
            uid: self.uid,
            gid: self.gid,
            checksum: file.digest.as_str(),
            last_mod_time: file.modified.map(name::http_date),
            auth_header_secret: &self.auth_secret,
            header: &self.headers,
        };
        let json = gojson::to_vec(&key).expect("texts and numbers are JSON");
        cache_key(Digest::sha256_of(json).as_str())
    }
}

/// Opens `http://` and `https://`.
pub(crate) fn open(shared: &Arc<Shared>, op: &pb::SourceOp) -> Result<Arc<dyn Source>, SourceError> {
    Ok(Arc::new(HttpSource::new(shared, HttpSpec::parse(op)?)))
}

struct HttpSource {
    shared: Arc<Shared>,
    spec: Arc<HttpSpec>,
    found: tokio::sync::Mutex<Option<Resolved>>,
}

impl HttpSource {
    fn new(shared: &Arc<Shared>, spec: HttpSpec) -> Self {
        Self { shared: Arc::clone(shared), spec: Arc::new(spec), found: tokio::sync::Mutex::default() }
    }

    /// What is there. With a checksum, nobody need be asked.
    async fn resolve(&self, cx: &SourceContext) -> Result<Resolved, SourceError> {
        let mut kept = self.found.lock().await;
        if let Some(found) = &*kept {
            return Ok(found.clone());
        }
        let found = match &self.spec.checksum {
            Some(checksum) => Resolved {
                digest: checksum.clone(),
                filename: file_name(&self.spec.url, self.spec.filename.as_deref(), None),
                modified: None,
                tree: None,
            },
            None => request::resolve(&self.shared, &self.spec, cx).await?,
        };
        let found = match &self.spec.signature {
            None => found,
            Some(signature) => self.verified(cx, found, signature).await?,
        };
        Ok(kept.insert(found).clone())
    }

    /// Gets the file, and looks whether it is signed.
    async fn verified(
        &self,
        cx: &SourceContext,
        found: Resolved,
        signature: &HttpSignature,
    ) -> Result<Resolved, SourceError> {
        let tree = match found.tree {
            Some(tree) => tree,
            None => request::fetch(&self.shared, &self.spec, cx, &found.digest).await?,
        };
        let (stores, held, name) = (self.shared.stores.clone(), tree.clone(), found.filename.clone());
        let HttpSignature { signature, keys } = signature.clone();
        let origin = self.spec.origin();
        SourceError::blocking(move || {
            let open = stores.open(&held)?;
            let content = || match &open {
                Some(open) => {
                    open_beneath(open.root(), Path::new(&name), OFlags::NONBLOCK).map(std::fs::File::from)
                }
                None => Err(std::io::ErrorKind::NotFound.into()),
            };
            let verified = verify_pgp(content, signature.as_bytes(), &keys, Demands::default());
            verified.map_err(|why| SourceError::Unsigned { origin, why })
        })
        .await?;
        Ok(Resolved { tree: Some(tree), ..found })
    }

    async fn get(&self, cx: &SourceContext) -> Result<Tree, SourceError> {
        let found = self.resolve(cx).await?;
        match found.tree {
            Some(tree) => Ok(tree),
            None => {
                let tree = request::fetch(&self.shared, &self.spec, cx, &found.digest).await?;
                *self.found.lock().await = Some(Resolved { tree: Some(tree.clone()), ..found });
                Ok(tree)
            }
        }
    }
}

impl Source for HttpSource {
    fn kind(&self) -> SourceKind {
        SourceKind::Http
    }

    fn description(&self) -> String {
        format!("http url {}", self.spec.origin())
    }

    fn pin<'a>(&'a self, cx: &'a SourceContext) -> BoxFuture<'a, Result<Digest, SourceError>> {
        Box::pin(async move { Ok(self.spec.cache_key(&self.resolve(cx).await?)) })
    }

    fn facts<'a>(&'a self, cx: &'a SourceContext) -> BoxFuture<'a, Result<SourceFacts, SourceError>> {
        Box::pin(async move {
            let Resolved { digest, filename, modified, .. } = self.resolve(cx).await?;
            Ok(SourceFacts::File { digest, filename, modified })
        })
    }

    fn material<'a>(&'a self, cx: &'a SourceContext) -> BoxFuture<'a, Result<Material, SourceError>> {
        Box::pin(async move {
            let Resolved { digest, .. } = self.resolve(cx).await?;
            Ok(Material::Http { url: self.spec.text.clone(), digest })
        })
    }

    fn fetch<'a>(&'a self, cx: &'a SourceContext) -> BoxFuture<'a, Result<Tree, SourceError>> {
        Box::pin(self.get(cx))
    }
}

/// How the digest of a file with something after it is made: what signatures are over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs, reason = "each is exactly what its name says")]
pub enum SuffixedDigest {
    Sha256,
    Sha384,
    Sha512,
}

/// The digest of a file and what is to follow it.
pub(crate) async fn suffixed_digest(
    shared: &Arc<Shared>,
    tree: &Tree,
    name: &str,
    kind: SuffixedDigest,
    suffix: &[u8],
) -> Result<String, SourceError> {
    let (stores, tree) = (shared.stores.clone(), tree.clone());
    let (name, suffix) = (name.to_owned(), suffix.to_vec());
    SourceError::blocking(move || {
        let Some(open) = stores.open(&tree)? else {
            return Err(SourceError::io("open", &name)(std::io::ErrorKind::NotFound.into()));
        };
        let digest = || {
            let file = open_beneath(open.root(), Path::new(&name), OFlags::NONBLOCK)?;
            let file = std::fs::File::from(file);
            Ok(match kind {
                SuffixedDigest::Sha256 => format!("sha256:{}", digest_of::<sha2::Sha256>(file, &suffix)?),
                SuffixedDigest::Sha384 => format!("sha384:{}", digest_of::<sha2::Sha384>(file, &suffix)?),
                SuffixedDigest::Sha512 => format!("sha512:{}", digest_of::<sha2::Sha512>(file, &suffix)?),
            })
        };
        digest().map_err(SourceError::io("read", &name))
    })
    .await
}

fn digest_of<D: sha2::Digest>(mut file: impl std::io::Read, suffix: &[u8]) -> std::io::Result<String> {
    let mut digest = D::new();
    let mut piece = vec![0; 1 << 16];
    loop {
        match file.read(&mut piece)? {
            0 => break,
            read => digest.update(&piece[..read]),
        }
    }
    digest.update(suffix);
    Ok(digest.finalize().iter().map(|byte| format!("{byte:02x}")).collect())
}

/// Whether a URL that is a build context is an archive; otherwise it is a Dockerfile.
pub(crate) async fn context_is_archive(
    shared: &Arc<Shared>,
    cx: &SourceContext,
    url: &str,
) -> Result<bool, SourceError> {
    let attrs = [("http.filename".to_owned(), CONTEXT_FILE.to_owned())].into();
    let op = pb::SourceOp { identifier: url.to_owned(), attrs };
    let source = HttpSource::new(shared, HttpSpec::parse(&op)?);
    let tree = source.get(cx).await?;
    let stores = shared.stores.clone();
    SourceError::blocking(move || archive::file_is_archive(&stores, &tree, CONTEXT_FILE)).await
}
