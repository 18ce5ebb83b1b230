//! One blob as a file: `docker-image+blob://name@digest` of a registry, `oci-layout+blob://name@digest` of a client's layout.
//!
//! A blob is its digest, so that nobody is asked what it is; but it is always asked for, whatever others have left in the store: who names a digest has to
//! have access to it.

use std::{io::Read, sync::Arc};

use bytes::Bytes;
use futures::{StreamExt, future::BoxFuture, stream};
use lapstrake_builder_llb::pb;
use lapstrake_layerstore_oci::{Algorithm, Descriptor, Digest, MediaType, Reference, gojson};
use lapstrake_layerstore_registry::{PullTarget, RegistryError};
use lapstrake_layerstore_store::{BlobReader, StoreError, Tree};
use tokio::sync::mpsc;

use crate::{
    BlobMaterial, Material, Source, SourceContext, SourceError, SourceKind,
    attrs::Attrs,
    http::{FileSpec, Saved, safe_name, save},
    layout::ClientLayout,
    sources::{Shared, cache_key},
};

/// Bytes that are read from the store at once, and how many such pieces may wait to be written.
const PIECE: usize = 256 << 10;
const READ_AHEAD: usize = 4;

/// Which blob, as an op says it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct BlobSpec {
    scheme: &'static str,
    reference: Reference,
    digest: Digest,
    /// The file's name; the digest's hexadecimal digits when there is none.
    filename: Option<String>,
    /// Permission bits, as the op has them.
    mode: u32,
    uid: u32,
    gid: u32,
    place: Place,
}

/// Where it is.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Place {
    Registry,
    Layout { store: String, session: Option<String> },
}

impl BlobSpec {
    pub(crate) fn parse(scheme: &'static str, name: &str, op: &pb::SourceOp) -> Result<Self, SourceError> {
        let bad = |why: &str| SourceError::Identifier { origin: op.identifier.clone(), why: why.to_owned() };
        let reference = Reference::parse(name).map_err(|error| bad(&error.to_string()))?;
        let digest = reference.digest().cloned().ok_or_else(|| bad("invalid reference digest"))?;
        if digest.algorithm() != Algorithm::Sha256 {
            return Err(bad("only blobs with sha256 digests are known"));
        }
        let attrs = Attrs::of(op);
        match attrs.text("image.recordtype") {
            None | Some("regular" | "internal" | "frontend") => {}
            Some(kind) => return Err(attrs.invalid("image.recordtype", kind, "invalid record type")),
        }
        // Of a registry's blob they say nothing.
        let (store, session) = (attrs.text("oci.store"), attrs.text("oci.session"));
        let place = match (scheme, store) {
            ("oci-layout+blob", Some(store)) => {
                Place::Layout { store: store.to_owned(), session: session.map(str::to_owned) }
            }
            ("oci-layout+blob", None) => return Err(bad("oci-layout blob source requires store id")),
            _ => Place::Registry,
        };
        let spec = Self {
            scheme,
            reference,
            digest,
            filename: attrs.text("http.filename").map(safe_name),
            mode: attrs.go_number("http.perm")?,
            uid: attrs.go_number("http.uid")?,
            gid: attrs.go_number("http.gid")?,
            place,
        };
        Ok(spec)
    }

    /// What it is, for those who say what something was made of.
    pub(crate) fn material(&self) -> BlobMaterial {
        BlobMaterial {
            reference: self.reference.to_string(),
            digest: self.digest.clone(),
            is_local: matches!(self.place, Place::Layout { .. }),
        }
    }

    pub(crate) fn origin(&self) -> String {
        format!("{}://{}", self.scheme, self.reference)
    }

    /// BuildKit's key (`source/containerblob`, `hash`).
    fn key(&self) -> Digest {
        #[derive(serde::Serialize)]
        #[serde(rename_all = "PascalCase")]
        struct Key<'a> {
            digest: &'a str,
            filename: &'a str,
            perm: u32,
            #[serde(rename = "UID")]
            uid: u32,
            #[serde(rename = "GID")]
            gid: u32,
        }
        let key = Key {
            digest: self.digest.as_str(),
            filename: self.filename.as_deref().unwrap_or_default(),
            perm: self.mode,
            uid: self.uid,
            gid: self.gid,
        };
        cache_key(Digest::sha256_of(gojson::to_vec(&key).expect("texts and numbers are JSON")).as_str())
    }

    fn file(&self) -> FileSpec {
        FileSpec {
            origin: self.origin(),
            name: self.filename.clone().unwrap_or_else(|| self.digest.hex().to_owned()),
            mode: self.mode & 0o777,
            uid: self.uid,
            gid: self.gid,
            modified: 0,
        }
    }
}

/// Opens `docker-image+blob://` and `oci-layout+blob://`.
pub(crate) fn open(
    shared: &Arc<Shared>,
    scheme: &'static str,
    name: &str,
    op: &pb::SourceOp,
) -> Result<Arc<dyn Source>, SourceError> {
    Ok(Arc::new(BlobSource { shared: Arc::clone(shared), spec: BlobSpec::parse(scheme, name, op)? }))
}

/// The blob as a file of a tree.
pub(crate) async fn fetch_blob(
    shared: &Arc<Shared>,
    spec: &BlobSpec,
    cx: &SourceContext,
) -> Result<Tree, SourceError> {
    BlobSource { shared: Arc::clone(shared), spec: spec.clone() }.get(cx).await
}

struct BlobSource {
    shared: Arc<Shared>,
    spec: BlobSpec,
}

impl BlobSource {
    async fn get(&self, cx: &SourceContext) -> Result<Tree, SourceError> {
        match &self.spec.place {
            Place::Registry => self.of_registry(cx).await,
            Place::Layout { store, session } => {
                let origin = self.spec.origin();
                let client =
                    ClientLayout::connect(&self.shared, session.as_deref(), store, origin.clone(), cx)
                        .await?;
                let chunks = client.read(&self.spec.digest).await?;
                let named = move |chunk: Result<Bytes, _>| chunk.map_err(SourceError::session(&origin));
                self.save(chunks.map(named).boxed()).await
            }
        }
    }

    async fn of_registry(&self, cx: &SourceContext) -> Result<Tree, SourceError> {
        let BlobSpec { reference, digest, .. } = &self.spec;
        let failed = |source: RegistryError| SourceError::Registry { origin: self.spec.origin(), source };
        let client = self.shared.images.client(cx);
        let size = client.blob_size(reference, digest).await.map_err(failed)?;
        let limit = self.shared.limits.http_bytes;
        if size > limit {
            return Err(SourceError::TooLarge { origin: self.spec.origin(), limit });
        }
        let mut part = cx.vertex.part(digest.to_string(), "downloading", size);
        let stores = &self.shared.stores;
        let lease = Arc::new(stores.leases.create());
        let blob = Descriptor::new(MediaType::new("application/octet-stream"), digest.clone(), size);
        let target = PullTarget { content: Arc::clone(&stores.content), lease: Arc::clone(&lease) };
        client.fetch_blob(reference, &blob, &target).await.map_err(failed)?;
        part.update(size, size);
        let (content, digest) = (Arc::clone(&stores.content), digest.clone());
        let reader = SourceError::blocking(move || content.reader(&digest)).await?;
        let tree = self.save(pieces(reader).boxed()).await;
        drop(lease);
        tree
    }

    /// Writes the file, which must be what its digest says.
    async fn save(
        &self,
        content: stream::BoxStream<'_, Result<Bytes, SourceError>>,
    ) -> Result<Tree, SourceError> {
        let Saved { tree, digest } =
            save(&self.shared.stores, self.spec.file(), self.shared.limits.http_bytes, content).await?;
        if digest == self.spec.digest {
            return Ok(tree);
        }
        let (origin, expected) = (self.spec.origin(), self.spec.digest.clone());
        Err(SourceError::Checksum { origin, what: "blob", expected, actual: digest })
    }
}

/// A blob of the store, piece by piece: it is read on a thread that may block, which ends when nobody wants more.
fn pieces(mut reader: Box<dyn BlobReader>) -> impl stream::Stream<Item = Result<Bytes, SourceError>> {
    let (sender, receiver) = mpsc::channel(READ_AHEAD);
    tokio::task::spawn_blocking(move || {
        loop {
            let mut piece = Vec::with_capacity(PIECE);
            let read = Read::take(&mut reader, PIECE as u64).read_to_end(&mut piece);
            let piece = match read {
                Ok(0) => break,
                Ok(_) => Ok(Bytes::from(piece)),
                Err(error) => Err(SourceError::from(StoreError::io("read", "blob")(error))),
            };
            let is_last = piece.is_err();
            if sender.blocking_send(piece).is_err() || is_last {
                break;
            }
        }
    });
    stream::unfold(receiver, |mut receiver| async move { Some((receiver.recv().await?, receiver)) })
}

impl Source for BlobSource {
    fn kind(&self) -> SourceKind {
        SourceKind::Http
    }

    fn description(&self) -> String {
        format!("blob {}", self.spec.reference)
    }

    fn pin<'a>(&'a self, _: &'a SourceContext) -> BoxFuture<'a, Result<Digest, SourceError>> {
        Box::pin(std::future::ready(Ok(self.spec.key())))
    }

    fn material<'a>(&'a self, _: &'a SourceContext) -> BoxFuture<'a, Result<Material, SourceError>> {
        Box::pin(std::future::ready(Ok(Material::Blob(self.spec.material()))))
    }

    fn fetch<'a>(&'a self, cx: &'a SourceContext) -> BoxFuture<'a, Result<Tree, SourceError>> {
        Box::pin(async move { cx.or_canceled(self.get(cx)).await? })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(scheme: &'static str, name: &str, attrs: &[(&str, &str)]) -> Result<BlobSpec, String> {
        let attrs = attrs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
        let op = pb::SourceOp { identifier: format!("{scheme}://{name}"), attrs };
        BlobSpec::parse(scheme, name, &op).map_err(|error| error.to_string())
    }

    #[test]
    fn a_blob_is_its_digest_and_what_its_file_is() {
        let digest = Digest::sha256_of("blob");
        let name = format!("docker.io/library/x@{digest}");
        let spec =
            parse("docker-image+blob", &name, &[("http.perm", "0755"), ("http.filename", "a/b")]).unwrap();
        assert_eq!(spec.file().name, "b");
        let key = format!(r#"{{"Digest":"{digest}","Filename":"b","Perm":493,"UID":0,"GID":0}}"#);
        assert_eq!(spec.key(), cache_key(Digest::sha256_of(key).as_str()));
        // What nobody knows means nothing.
        let named = parse("docker-image+blob", &name, &[("image.what", "1")]).unwrap();
        assert_eq!(named.file().name, digest.hex());
        for (scheme, name, attrs, why) in [
            ("docker-image+blob", "x:latest", &[][..], "invalid reference digest"),
            ("oci-layout+blob", name.as_str(), &[], "oci-layout blob source requires store id"),
            ("docker-image+blob", name.as_str(), &[("image.recordtype", "1")], "invalid record type"),
        ] {
            let error = parse(scheme, name, attrs).unwrap_err();
            assert!(error.contains(why), "{error}");
        }
    }
}
