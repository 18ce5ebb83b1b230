//! Images of OCI layouts that a client offers: `oci-layout://name@digest`.
//!
//! ```text
//!   pin    root document ──► index? ──► manifest ──► config        asked of the client's session, compared with their digests, kept in the store
//!   fetch  layers that are not unpacked yet ──► blobs ──► unpacked onto each other
//! ```
//!
//! A layout is asked for only through a session: what lies in directories of this machine is not for clients to name.

mod blobs;
mod documents;

use std::sync::{Arc, OnceLock};

use futures::{StreamExt, TryStreamExt, future::BoxFuture, stream};
use lapstrake_builder_dockerfile::{ImageFact, ImageOrigin, ImageQuery};
use lapstrake_builder_llb::pb;
use lapstrake_layerstore_oci::{ChainId, Digest, Platform, Reference};
use lapstrake_layerstore_store::Tree;
use lapstrake_layerstore_transfer::{LayerBlob, TransferError, unpack, unpacked};

pub(crate) use self::blobs::ClientLayout;
use self::documents::Documents;
use crate::{
    Material, Source, SourceContext, SourceError, SourceKind,
    attrs::Attrs,
    image::{PullProgress, from_proto, manifest_key},
    sources::{Shared, cache_key},
};

/// Layers that are transferred at once.
const CONCURRENT: usize = 3;

/// Which image, as an op says it.
#[derive(Debug, Clone, PartialEq, Eq)]
struct LayoutSpec {
    /// What it is called; it says nothing about where it is.
    reference: Reference,
    /// Its manifest or index.
    digest: Digest,
    platform: Platform,
    /// The client's name for the layout.
    layout: String,
    /// The session that offers it; any of those that wait when there is none.
    session: Option<String>,
    layer_limit: Option<u32>,
}

impl LayoutSpec {
    fn parse(name: &str, op: &pb::SourceOp, platform: Option<&pb::Platform>) -> Result<Self, SourceError> {
        let bad = |why: String| SourceError::Identifier { origin: op.identifier.clone(), why };
        let reference = Reference::parse(name).map_err(|error| bad(error.to_string()))?;
        let digest = reference.digest().cloned().ok_or_else(|| bad("no digest".to_owned()))?;
        let attrs = Attrs::of(op);
        let layer_limit: Option<u32> = attrs.parse("oci.layerlimit")?;
        if layer_limit == Some(0) {
            return Err(attrs.invalid("oci.layerlimit", "0", "invalid layer limit"));
        }
        let layout = attrs.text("oci.store").ok_or_else(|| bad("no store".to_owned()))?.to_owned();
        let session = attrs.text("oci.session").map(str::to_owned);
        let platform = platform.map_or_else(Platform::host, from_proto);
        Ok(Self { reference, digest, platform, layout, session, layer_limit })
    }

    fn origin(&self) -> String {
        format!("oci-layout://{}", self.reference)
    }

    async fn client(&self, shared: &Arc<Shared>, cx: &SourceContext) -> Result<ClientLayout, SourceError> {
        ClientLayout::connect(shared, self.session.as_deref(), &self.layout, self.origin(), cx).await
    }
}

/// Opens `oci-layout://`.
pub(crate) fn open(
    shared: &Arc<Shared>,
    name: &str,
    op: &pb::SourceOp,
    platform: Option<&pb::Platform>,
) -> Result<Arc<dyn Source>, SourceError> {
    let spec = LayoutSpec::parse(name, op, platform)?;
    Ok(Arc::new(LayoutSource {
        shared: Arc::clone(shared),
        spec,
        found: tokio::sync::Mutex::default(),
        by_manifest: OnceLock::new(),
    }))
}

/// What the Dockerfile frontend wants to know of an image in a layout.
pub(crate) async fn fact(
    shared: &Arc<Shared>,
    cx: &SourceContext,
    query: &ImageQuery,
) -> Result<ImageFact, SourceError> {
    let no_digest = || SourceError::Identifier {
        origin: format!("oci-layout://{}", query.reference),
        why: "no digest".to_owned(),
    };
    let digest = query.reference.digest().cloned().ok_or_else(no_digest)?;
    let ImageOrigin::OciLayout { store_id, session_id } = &query.origin else {
        return Err(SourceError::Unsupported {
            origin: query.reference.to_string(),
            what: "a layout that is none".to_owned(),
        });
    };
    let spec = LayoutSpec {
        reference: query.reference.clone(),
        digest: digest.clone(),
        platform: query.platform.clone(),
        layout: store_id.clone(),
        session: Some(session_id.clone()).filter(|id| !id.is_empty()),
        layer_limit: None,
    };
    let found = cx.or_canceled(Documents::find(shared, &spec, cx)).await??;
    Ok(ImageFact {
        reference: query.reference.clone(),
        digest: Some(digest),
        config: found.config_bytes.into(),
        image_id: None,
    })
}

struct LayoutSource {
    shared: Arc<Shared>,
    spec: LayoutSpec,
    /// What `pin` found: `fetch` gets that and nothing else.
    found: tokio::sync::Mutex<Option<Arc<Documents>>>,
    /// The key by the image's digest, made by `pin`.
    by_manifest: OnceLock<Digest>,
}

impl LayoutSource {
    async fn found(&self, cx: &SourceContext) -> Result<Arc<Documents>, SourceError> {
        let mut kept = self.found.lock().await;
        if let Some(found) = &*kept {
            return Ok(Arc::clone(found));
        }
        let part = cx.vertex.part(format!("resolve {}", self.spec.reference), "", 0);
        let found = cx.or_canceled(Documents::find(&self.shared, &self.spec, cx)).await??;
        part.done();
        Ok(Arc::clone(kept.insert(Arc::new(found))))
    }

    /// The layers that the op asks for, bottom first.
    fn layers(&self, found: &Documents) -> Result<Vec<LayerBlob>, SourceError> {
        let mut all = found.layers();
        if let Some(limit) = self.spec.layer_limit {
            let count = all.len();
            if limit as usize > count {
                let why =
                    format!("layer limit {limit} is greater than the number of layers in the image {count}");
                return Err(SourceError::Unsuitable { origin: self.spec.origin(), why });
            }
            all.truncate(limit as usize);
        }
        Ok(all)
    }

    async fn pin(&self, cx: &SourceContext) -> Result<Digest, SourceError> {
        let found = self.found(cx).await?;
        let spec = &self.spec;
        self.by_manifest
            .get_or_init(|| cache_key(manifest_key(&spec.digest, &spec.platform, spec.layer_limit).as_str()));
        let diff_ids: Vec<_> = self.layers(&found)?.into_iter().map(|layer| layer.diff_id).collect();
        // As of any image: it counts by its layers, wherever it came from.
        Ok(match ChainId::of(&diff_ids) {
            Some(chain) => cache_key(chain.as_str()),
            None => cache_key(Digest::sha256_of(&found.config_bytes).as_str()),
        })
    }

    async fn fetch(&self, cx: &SourceContext) -> Result<Tree, SourceError> {
        let found = self.found(cx).await?;
        let layers = self.layers(&found)?;
        let diff_ids: Vec<_> = layers.iter().map(|layer| layer.diff_id.clone()).collect();
        let failed = |source| match source {
            TransferError::Canceled => SourceError::Canceled,
            source => SourceError::Pull { origin: self.spec.origin(), source },
        };
        // What is unpacked now is held until the unpacking below has found it again.
        let (there, _present) = unpacked(&self.shared.stores, &diff_ids).await.map_err(failed)?;
        let lease = Arc::new(self.shared.stores.leases.create());
        let missing = &layers[there..];
        if !missing.is_empty() {
            let client = cx.or_canceled(self.spec.client(&self.shared, cx)).await??;
            let transfers: Vec<BoxFuture<'_, _>> = missing
                .iter()
                .map(|layer| Box::pin(client.store_blob(&layer.descriptor, &lease, &cx.vertex)) as _)
                .collect();
            let all = stream::iter(transfers).buffer_unordered(CONCURRENT).try_collect::<()>();
            cx.or_canceled(all).await??;
        }
        let names = layers.iter().map(|layer| layer.descriptor.digest.clone()).collect();
        let report = PullProgress::new(cx.vertex.clone(), names).unpacking();
        // Dropping this future stops the unpacking, too.
        let cancel = cx.cancel.child_token();
        let _stop = cancel.clone().drop_guard();
        let stores = self.shared.stores.clone();
        let work = move || {
            let tree = unpack(&stores, &layers, &cancel, &*report);
            drop(lease);
            tree
        };
        match tokio::task::spawn_blocking(work).await {
            Ok(tree) => tree.map_err(failed),
            Err(error) => match error.try_into_panic() {
                Ok(panic) => std::panic::resume_unwind(panic),
                Err(_) => Err(SourceError::Canceled),
            },
        }
    }
}

impl Source for LayoutSource {
    fn kind(&self) -> SourceKind {
        SourceKind::Image
    }

    fn description(&self) -> String {
        format!("pulled from {}", self.spec.origin())
    }

    fn pin<'a>(&'a self, cx: &'a SourceContext) -> BoxFuture<'a, Result<Digest, SourceError>> {
        Box::pin(self.pin(cx))
    }

    fn also_known_as(&self) -> Vec<Digest> {
        self.by_manifest.get().cloned().into_iter().collect()
    }

    fn material<'a>(&'a self, _: &'a SourceContext) -> BoxFuture<'a, Result<Material, SourceError>> {
        let LayoutSpec { reference, platform, digest, .. } = &self.spec;
        Box::pin(std::future::ready(Ok(Material::Image {
            reference: reference.to_string(),
            platform: Some(platform.clone()),
            digest: Some(digest.clone()),
            is_local: true,
        })))
    }

    fn fetch<'a>(&'a self, cx: &'a SourceContext) -> BoxFuture<'a, Result<Tree, SourceError>> {
        Box::pin(self.fetch(cx))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(name: &str, attrs: &[(&str, &str)]) -> Result<LayoutSpec, String> {
        let attrs = attrs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
        let op = pb::SourceOp { identifier: format!("oci-layout://{name}"), attrs };
        LayoutSpec::parse(name, &op, None).map_err(|error| error.to_string())
    }

    #[test]
    fn an_op_names_digest_and_store() {
        let digest = Digest::sha256_of("manifest");
        let name = format!("docker.io/library/x@{digest}");
        let spec = parse(&name, &[("oci.store", "s"), ("oci.session", "id"), ("oci.layerlimit", "2")]);
        let spec = spec.unwrap();
        assert_eq!((spec.layout.as_str(), spec.session.as_deref()), ("s", Some("id")));
        assert_eq!((spec.digest, spec.layer_limit), (digest, Some(2)));
        for (name, attrs, why) in [
            ("x:latest", &[("oci.store", "s")][..], "no digest"),
            (name.as_str(), &[], "no store"),
            (name.as_str(), &[("oci.store", "s"), ("oci.layerlimit", "0")], "invalid layer limit"),
            ("A@B", &[("oci.store", "s")], "invalid source"),
        ] {
            let error = parse(name, attrs).unwrap_err();
            assert!(error.contains(why), "{name} {attrs:?}: {error}");
        }
    }
}
