//! Images: `docker-image://name[:tag][@digest]`.
//!
//! Moby's rules: an image of the name in the local image store is used without asking a registry, if it is for the platform and the op
//! does not say `pull`. Otherwise the registry says what the name means, unless the op says so itself by digest and the documents are here.

mod attestations;
mod credentials;
mod progress;
mod resolve;

use std::sync::{Arc, OnceLock};

use futures::future::BoxFuture;
use lapstrake_builder_llb::{ResolveMode, pb};
use lapstrake_layerstore_oci::{ChainId, DiffId, Digest, Platform, Reference, gojson};
use lapstrake_layerstore_registry::Resolved;
use lapstrake_layerstore_store::{Stores, Tree};
use lapstrake_layerstore_transfer::{TransferError, pull_image};

pub use self::attestations::AttestationChain;
pub(crate) use self::credentials::Logins;
pub(crate) use self::progress::PullProgress;
use self::resolve::Found;
pub(crate) use self::resolve::{Images, document_type};
use crate::{
    Material, Source, SourceContext, SourceError, SourceKind,
    attrs::Attrs,
    sources::{Shared, cache_key},
};

/// Which image, as an op says it.
#[derive(Debug, Clone, PartialEq)]
struct ImageSpec {
    reference: Reference,
    platform: Platform,
    mode: ResolveMode,
    layer_limit: Option<u32>,
    checksum: Option<Digest>,
}

impl ImageSpec {
    fn parse(name: &str, op: &pb::SourceOp, platform: Option<&pb::Platform>) -> Result<Self, SourceError> {
        let reference = Reference::parse(name).map_err(|error| SourceError::Identifier {
            origin: op.identifier.clone(),
            why: error.to_string(),
        })?;
        let attrs = Attrs::of(op);
        let mode = match attrs.text("image.resolvemode") {
            None | Some("default") => ResolveMode::Default,
            Some("pull") => ResolveMode::ForcePull,
            Some("local") => ResolveMode::PreferLocal,
            Some(mode) => return Err(attrs.invalid("image.resolvemode", mode, "invalid resolvemode")),
        };
        match attrs.text("image.recordtype") {
            None | Some("regular" | "internal" | "frontend") => {}
            Some(kind) => return Err(attrs.invalid("image.recordtype", kind, "invalid record type")),
        }
        let layer_limit: Option<u32> = attrs.parse("image.layerlimit")?;
        if layer_limit == Some(0) {
            return Err(attrs.invalid("image.layerlimit", "0", "invalid layer limit"));
        }
        let checksum = match attrs.text("image.checksum") {
            None => None,
            Some(text) => {
                Some(Digest::parse(text).map_err(|error| attrs.invalid("image.checksum", text, error))?)
            }
        };
        Ok(Self {
            reference: reference.with_default_tag(),
            platform: platform.map_or_else(Platform::host, from_proto),
            mode,
            layer_limit,
            checksum,
        })
    }
}

/// A platform as a graph has it.
pub(crate) fn from_proto(platform: &pb::Platform) -> Platform {
    let mut own = Platform::new(&platform.os, &platform.architecture).with_variant(&platform.variant);
    own.os_version.clone_from(&platform.os_version);
    own.os_features.clone_from(&platform.os_features);
    own.normalized()
}

/// Opens `docker-image://`.
pub(crate) fn open(
    shared: &Arc<Shared>,
    name: &str,
    op: &pb::SourceOp,
    platform: Option<&pb::Platform>,
) -> Result<Arc<dyn Source>, SourceError> {
    let spec = ImageSpec::parse(name, op, platform)?;
    Ok(Arc::new(ImageSource {
        shared: Arc::clone(shared),
        spec,
        found: tokio::sync::Mutex::default(),
        by_manifest: OnceLock::new(),
    }))
}

struct ImageSource {
    shared: Arc<Shared>,
    spec: ImageSpec,
    /// What `pin` found: `fetch` gets that and nothing else.
    found: tokio::sync::Mutex<Option<Found>>,
    /// Keys by the image's manifests, made by `pin`.
    by_manifest: OnceLock<Vec<Digest>>,
}

impl ImageSource {
    async fn found(&self, cx: &SourceContext) -> Result<Found, SourceError> {
        let mut kept = self.found.lock().await;
        if let Some(found) = &*kept {
            return Ok(found.clone());
        }
        let ImageSpec { reference, platform, mode, checksum, .. } = &self.spec;
        // Only what a registry knows has the digest that a checksum is about.
        let mode = if checksum.is_some() { ResolveMode::ForcePull } else { *mode };
        let part = cx.vertex.part(format!("resolve {reference}"), "", 0);
        let found = self.shared.images.find(cx, reference, platform, mode).await?;
        part.done();
        if let (Some(expected), Found::Remote { image, .. }) = (checksum, &found)
            && image.root.digest != *expected
        {
            return Err(SourceError::Checksum {
                origin: reference.to_string(),
                what: "image",
                expected: expected.clone(),
                actual: image.root.digest.clone(),
            });
        }
        Ok(kept.insert(found).clone())
    }

    /// The diff ids of the layers that the op asks for.
    fn layers<'a>(&self, found: &'a Found) -> Result<&'a [DiffId], SourceError> {
        let all = found.diff_ids();
        let Some(limit) = self.spec.layer_limit else { return Ok(all) };
        all.get(..limit as usize).ok_or_else(|| SourceError::Unsuitable {
            origin: self.spec.reference.to_string(),
            why: format!(
                "layer limit {limit} is greater than the number of layers in the image {}",
                all.len()
            ),
        })
    }

    async fn pin(&self, cx: &SourceContext) -> Result<Digest, SourceError> {
        let found = self.found(cx).await?;
        self.by_manifest.get_or_init(|| {
            let ImageSpec { platform, layer_limit, .. } = &self.spec;
            let keys =
                found.manifests().into_iter().map(|digest| manifest_key(&digest, platform, *layer_limit));
            keys.map(|key| cache_key(key.as_str())).collect()
        });
        // BuildKit's `cacheKeyFromConfig`, so that an image counts by its layers, whatever name and digest it has.
        Ok(match ChainId::of(self.layers(&found)?) {
            Some(chain) => cache_key(chain.as_str()),
            None => cache_key(Digest::sha256_of(found.config()).as_str()),
        })
    }

    async fn fetch(&self, cx: &SourceContext) -> Result<Tree, SourceError> {
        let found = self.found(cx).await?;
        let wanted = ChainId::of(self.layers(&found)?);
        let tree = match &found {
            Found::Local { tree, .. } => tree.clone(),
            Found::Remote { image, .. } => {
                let digests = image.manifest.layers.iter().map(|layer| layer.digest.clone()).collect();
                let progress = PullProgress::new(cx.vertex.clone(), digests);
                let client = self.shared.images.client(cx);
                let transfers = progress.transfers();
                let resolved =
                    Resolved { reference: image.reference.clone(), descriptor: image.root.clone() };
                let pulled = pull_image(
                    &self.shared.stores,
                    &client,
                    &resolved,
                    &self.spec.platform,
                    &transfers,
                    progress.unpacking(),
                    &cx.cancel,
                );
                pulled
                    .await
                    .map_err(|source| match source {
                        TransferError::Canceled => SourceError::Canceled,
                        source => SourceError::Pull { origin: self.spec.reference.to_string(), source },
                    })?
                    .tree
            }
        };
        self.refuse_windows_layers(&tree).await?;
        match wanted {
            Some(chain) if self.spec.layer_limit.is_some() => self.below(tree, chain).await,
            _ => Ok(tree),
        }
    }

    /// Windows' own layers have all files below `Files`, and beside that what only Windows makes something of: what is copied to or from such a tree would
    /// be in the wrong place.
    async fn refuse_windows_layers(&self, tree: &Tree) -> Result<(), SourceError> {
        if self.spec.platform.os != "windows" {
            return Ok(());
        }
        let (stores, tree) = (self.shared.stores.clone(), tree.clone());
        let origin = self.spec.reference.to_string();
        SourceError::blocking(move || {
            let Some(open) = stores.open(&tree)? else { return Ok(()) };
            let is_directory =
                |name| open.path().join(name).symlink_metadata().is_ok_and(|stat| stat.is_dir());
            match ["Files", "Hives"].into_iter().all(is_directory) {
                true => Err(SourceError::Unsupported {
                    origin,
                    what: "an image of Windows' own layers".to_owned(),
                }),
                false => Ok(()),
            }
        })
        .await
    }

    /// The tree of some of the layers of `whole`.
    async fn below(&self, whole: Tree, chain: ChainId) -> Result<Tree, SourceError> {
        let stores: Stores = self.shared.stores.clone();
        let origin = self.spec.reference.to_string();
        SourceError::blocking(move || {
            // Held as a parent of `whole`, so that it cannot go in between.
            let layer = stores.layers.by_chain(&chain)?;
            let tree = match layer {
                Some(layer) => stores.hold(&layer.snapshot)?,
                None => None,
            };
            drop(whole);
            tree.ok_or_else(|| SourceError::Unsuitable {
                origin,
                why: format!("no layer has the chain id {chain}"),
            })
        })
        .await
    }
}

impl Source for ImageSource {
    fn kind(&self) -> SourceKind {
        SourceKind::Image
    }

    fn description(&self) -> String {
        format!("pulled from {}", self.spec.reference)
    }

    fn pin<'a>(&'a self, cx: &'a SourceContext) -> BoxFuture<'a, Result<Digest, SourceError>> {
        Box::pin(self.pin(cx))
    }

    fn also_known_as(&self) -> Vec<Digest> {
        self.by_manifest.get().cloned().unwrap_or_default()
    }

    fn material<'a>(&'a self, cx: &'a SourceContext) -> BoxFuture<'a, Result<Material, SourceError>> {
        Box::pin(async move {
            let found = self.found(cx).await?;
            let ImageSpec { reference, platform, .. } = &self.spec;
            Ok(Material::Image {
                reference: reference.to_string(),
                platform: Some(platform.clone()),
                digest: Some(found.digest(reference)),
                is_local: false,
            })
        })
    }

    fn fetch<'a>(&'a self, cx: &'a SourceContext) -> BoxFuture<'a, Result<Tree, SourceError>> {
        Box::pin(self.fetch(cx))
    }
}

/// BuildKit's `mainManifestKey`: it looks for an image by the digest it was named by before it looks for it by its layers, and what was found or
/// made by the first is not linked from the second.
pub(crate) fn manifest_key(digest: &Digest, platform: &Platform, layer_limit: Option<u32>) -> Digest {
    let mut key = serde_json::Map::new();
    key.insert("Digest".to_owned(), digest.as_str().into());
    key.insert("OS".to_owned(), platform.os.as_str().into());
    key.insert("Arch".to_owned(), platform.architecture.as_str().into());
    for (name, value) in [("Variant", &platform.variant), ("OSVersion", &platform.os_version)] {
        if !value.is_empty() {
            key.insert(name.to_owned(), value.as_str().into());
        }
    }
    if !platform.os_features.is_empty() {
        key.insert("OSFeatures".to_owned(), platform.os_features.clone().into());
    }
    if let Some(limit) = layer_limit {
        key.insert("Limit".to_owned(), limit.into());
    }
    Digest::sha256_of(gojson::to_vec(&key).expect("a map serialises"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_manifest_key_is_buildkits_json() {
        let digest = Digest::sha256_of(b"manifest");
        let platform = Platform::new("linux", "arm").with_variant("v7");
        let json = |rest: &str| {
            Digest::sha256_of(format!(
                r#"{{"Digest":"{digest}","OS":"linux","Arch":"arm","Variant":"v7"{rest}}}"#
            ))
        };
        assert_eq!(manifest_key(&digest, &platform, None), json(""));
        assert_eq!(manifest_key(&digest, &platform, Some(2)), json(r#","Limit":2"#));
    }
}
