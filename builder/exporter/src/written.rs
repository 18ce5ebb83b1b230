//! An image as documents and blobs: for a registry, a layout, or an index in the image store.
//!
//! ```text
//!   results ─► layers' blobs ─► configs ─► manifests ─► attestations of each ─► index of all
//! ```
//!
//! Each is durable in the content store, and held by a lease, before what names it is written. A crash leaves blobs that nothing names, which the next start
//! collects.

use std::{collections::BTreeMap, sync::Arc};

use lapstrake_builder_progress::VertexHandle;
use lapstrake_layerstore_oci::{
    Descriptor, DiffId, ImageConfig, ImageId, Manifest, MediaType, Platform, Reference, gojson,
};
use lapstrake_layerstore_store::{Layer, Resource, Stores};
use lapstrake_layerstore_transfer::{
    ImageIndex, ImageManifest, LayoutContents, ManifestForm, ManifestOptions, described, layers, make_blobs,
    make_index, write_manifest,
};
use tokio_util::sync::CancellationToken;

use crate::{
    AnnotationLevel, Attestation, ExportError, ImageOptions, PlatformResult,
    finished::{self, Finished},
    rewrite::{REWRITTEN, layers_of_base, rewritten},
    sbom::ImageLayers,
    statement::{ResultSubject, Statement, package_url, statements},
};

/// Says that a manifest in an index is an attestation of another one there.
const REFERENCE_TYPE: &str = "vnd.docker.reference.type";
const REFERENCE_DIGEST: &str = "vnd.docker.reference.digest";
const ATTESTATION: &str = "attestation-manifest";
const ATTESTATION_ARTIFACT: &str = "application/vnd.docker.attestation.manifest.v1+json";
const PREDICATE_TYPE: &str = "in-toto.io/predicate-type";

/// An image in the content store.
pub(crate) struct Written {
    /// One for each platform.
    pub(crate) images: Vec<Finished>,
    /// Its documents and blobs, held.
    pub(crate) contents: LayoutContents,
    /// What names it all, with the annotations that it was given.
    pub(crate) root: Descriptor,
}

/// What is to be written.
pub(crate) struct Order<'a> {
    pub(crate) options: &'a ImageOptions,
    pub(crate) results: Vec<PlatformResult>,
    /// Whether it is one result of several, also where there is but one.
    pub(crate) several: bool,
    /// Its names, which attestations are about.
    pub(crate) names: &'a [Reference],
}

impl Written {
    /// The image's id, if it is one image.
    pub(crate) fn id(&self) -> Option<&ImageId> {
        match &self.contents {
            LayoutContents::Manifest(_) => self.images.first().map(|image| &image.id),
            LayoutContents::Index(_) => None,
        }
    }

    pub(crate) fn manifests(&self) -> &[ImageManifest] {
        match &self.contents {
            LayoutContents::Manifest(one) => std::slice::from_ref(&**one),
            LayoutContents::Index(index) => &index.manifests,
        }
    }

    /// The image that stands for all, with its manifest.
    pub(crate) fn representative(&self) -> (&Finished, &ImageManifest) {
        let of_host = match &self.contents {
            LayoutContents::Manifest(_) => None,
            LayoutContents::Index(index) => index.choose(&Platform::host()),
        };
        let is_of = |image: &&Finished, manifest: &ImageManifest| {
            *image.id.digest() == manifest.manifest.config.digest
        };
        let of_host = of_host
            .and_then(|manifest| Some((self.images.iter().find(|image| is_of(image, manifest))?, manifest)));
        of_host.unwrap_or_else(|| {
            // Manifests of images come first, in their order.
            (
                self.images.first().expect("there is a result"),
                self.manifests().first().expect("each has a manifest"),
            )
        })
    }
}

/// Writes an image. `ready` is told of each layer's blob as soon as it is there. Blocks.
pub(crate) fn write(
    stores: &Stores,
    order: Order<'_>,
    vertex: &VertexHandle,
    cancel: &CancellationToken,
    ready: &(dyn Fn(&Descriptor) + Sync),
) -> Result<Written, ExportError> {
    let Order { options, mut results, several, names } = order;
    for result in &mut results {
        finished::replace_config(result, options)?;
        if !options.inline_attestations {
            result.attestations.retain(|attestation| !attestation.is_inline_only());
        }
    }
    let attested = results.iter().any(|result| !result.attestations.is_empty());
    let is_index = several || attested;
    check(options, &results, is_index, attested)?;
    let lease = stores.leases.create();
    let exporting = vertex.part("exporting layers", "", 0);
    let mut trees = Vec::with_capacity(results.len());
    for result in &mut results {
        let all = layers(stores, &result.tree)?;
        let epoch = options.epoch.or(result.epoch);
        trees.push(match (options.rewrite_timestamp, epoch) {
            (true, Some(epoch)) => rewritten(stores, result, all, epoch, vertex, cancel)?,
            _ => all,
        });
    }
    // Those of all platforms at once.
    let all: Vec<Layer> = trees.iter().flatten().cloned().collect();
    let mut blobs = make_blobs(stores, &all, &options.layers, &lease, cancel, ready)?.into_iter();
    exporting.done();
    let writer = Writer { stores, options, names, vertex };
    let (mut images, mut manifests, mut attestations) = (Vec::new(), Vec::new(), Vec::new());
    for (result, layers) in results.into_iter().zip(trees) {
        let blobs: Vec<Descriptor> = blobs.by_ref().take(layers.len()).collect();
        let platform = result.platform.clone();
        let attested = result.attestations.clone();
        let (image, manifest) = writer.image(result, layers, blobs)?;
        if !attested.is_empty() {
            let layers = ImageLayers { layers: &image.layers, blobs: &manifest.manifest.layers };
            attestations.push(writer.attestations(&manifest, &layers, &platform, &attested)?);
        }
        images.push(image);
        manifests.push(manifest);
    }
    // The manifests hold their blobs from here on.
    drop(lease);
    if !is_index {
        let manifest = manifests.pop().ok_or(ExportError::NoResults)?;
        let root = manifest.descriptor.clone();
        return Ok(Written { images, contents: LayoutContents::Manifest(Box::new(manifest)), root });
    }
    manifests.extend(attestations);
    let index = writer.index(manifests)?;
    let mut root = index.descriptor.clone();
    root.annotations = options.annotations.of_index(AnnotationLevel::IndexDescriptor);
    Ok(Written { images, contents: LayoutContents::Index(Box::new(index)), root })
}

fn check(
    options: &ImageOptions,
    results: &[PlatformResult],
    is_index: bool,
    attested: bool,
) -> Result<(), ExportError> {
    if !is_index && results.len() > 1 {
        return Err(ExportError::SeveralPlatforms);
    }
    let platforms: Vec<Platform> = results.iter().map(|result| result.platform.clone()).collect();
    options.annotations.check(&platforms, options.is_oci())?;
    if !is_index && options.annotations.has_index() {
        return Err(ExportError::conflict("index annotations not supported for single platform export"));
    }
    if attested && !options.is_oci() {
        return Err(ExportError::conflict("cannot export attestations with \"oci-mediatypes=false\""));
    }
    Ok(())
}

struct Writer<'a> {
    stores: &'a Stores,
    options: &'a ImageOptions,
    names: &'a [Reference],
    vertex: &'a VertexHandle,
}

impl Writer<'_> {
    fn form(&self) -> ManifestForm {
        if self.options.is_oci() { ManifestForm::Oci } else { ManifestForm::Docker }
    }

    /// A platform's config and manifest.
    fn image(
        &self,
        result: PlatformResult,
        layers: Vec<Layer>,
        blobs: Vec<Descriptor>,
    ) -> Result<(Finished, ImageManifest), ExportError> {
        let (platform, annotations) = (result.platform.clone(), &self.options.annotations);
        let epoch = self.options.epoch.or(result.epoch);
        let rewritten = epoch.filter(|_| self.options.rewrite_timestamp && self.options.is_oci());
        let of_base = layers_of_base(&result, &layers);
        let image = finished::finish(self.stores, result, layers, &blobs, epoch)?;
        let mut options = ManifestOptions::of_buildkit(self.form(), self.options.layers);
        options.annotations = annotations.of_manifest(AnnotationLevel::Manifest, Some(&platform));
        let blobs_lease = self.stores.leases.create();
        for blob in &blobs {
            blobs_lease.hold(Resource::Blob(blob.digest.clone()));
        }
        let mut blobs: Vec<_> = blobs.iter().map(|blob| described(blob, self.form())).collect();
        if let Some(epoch) = rewritten {
            for blob in &mut blobs[of_base..] {
                blob.annotations.insert(REWRITTEN.to_owned(), epoch.to_string());
            }
        }
        let mut manifest = write_manifest(self.stores, &image.config, blobs, &options, blobs_lease)?;
        manifest.descriptor.platform = Some(platform.clone());
        manifest.descriptor.annotations =
            annotations.of_manifest(AnnotationLevel::ManifestDescriptor, Some(&platform));
        self.vertex.part(format!("exporting manifest {}", manifest.descriptor.digest), "", 0).done();
        self.vertex.part(format!("exporting config {}", image.id), "", 0).done();
        Ok((image, manifest))
    }

    fn index(&self, manifests: Vec<ImageManifest>) -> Result<ImageIndex, ExportError> {
        let annotations = self.options.annotations.of_index(AnnotationLevel::Index);
        let index = make_index(self.stores, manifests, self.form(), annotations)?;
        self.vertex.part(format!("exporting manifest list {}", index.descriptor.digest), "", 0).done();
        Ok(index)
    }

    /// The manifest of what is attested of another one.
    fn attestations(
        &self,
        about: &ImageManifest,
        image: &ImageLayers<'_>,
        platform: &Platform,
        attestations: &[Attestation],
    ) -> Result<ImageManifest, ExportError> {
        let digest = &about.descriptor.digest;
        let subjects: Vec<ResultSubject> =
            self.names.iter().map(|name| ResultSubject::new(package_url(name, platform), digest)).collect();
        let lease = self.stores.leases.create();
        let mut layers = Vec::new();
        let statements = statements(self.stores, attestations, &subjects, Some(image))?;
        for Statement { predicate_type, json, .. } in statements {
            self.stores.content.write_small_held(&json, &lease)?;
            let mut layer = Descriptor::of(MediaType::IN_TOTO, &json);
            layer.annotations.insert(PREDICATE_TYPE.to_owned(), predicate_type);
            layers.push(layer);
        }
        let nowhere = Platform::new("unknown", "unknown");
        let artifact = self.options.has_artifacts();
        let mut config =
            Descriptor { data: Some(EMPTY.to_vec()), ..Descriptor::of(MediaType::OCI_EMPTY, EMPTY) };
        let mut bytes = EMPTY.to_vec();
        if !artifact {
            let mut document = ImageConfig::for_platform(&nowhere);
            document.rootfs.diff_ids = layers.iter().map(|layer| DiffId(layer.digest.clone())).collect();
            bytes = document.to_json()?;
            config = Descriptor::of(MediaType::OCI_CONFIG, &bytes);
        }
        self.stores.content.write_small_held(&bytes, &lease)?;
        let mut manifest = Manifest::new(MediaType::OCI_MANIFEST, config, layers);
        if artifact {
            let Descriptor { media_type, digest, size, .. } = about.descriptor.clone();
            manifest.artifact_type = Some(ATTESTATION_ARTIFACT.to_owned());
            manifest.subject = Some(Descriptor::new(media_type, digest, size));
        }
        let json = gojson::to_vec_indent(&manifest, "  ")?;
        self.stores.content.write_small_held(&json, &lease)?;
        let mut descriptor = Descriptor::of(MediaType::OCI_MANIFEST, &json).with_platform(nowhere);
        descriptor.annotations = BTreeMap::from([
            (REFERENCE_DIGEST.to_owned(), digest.to_string()),
            (REFERENCE_TYPE.to_owned(), ATTESTATION.to_owned()),
        ]);
        self.vertex.part(format!("exporting attestation manifest {}", descriptor.digest), "", 0).done();
        Ok(ImageManifest { descriptor, manifest, lease: Arc::new(lease) })
    }
}

/// The config of what has none (OCI image-spec, "Guidance for an Empty Descriptor").
const EMPTY: &[u8] = b"{}";
