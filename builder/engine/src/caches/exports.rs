//! Caches that a build leaves for others: in a registry, in a directory, in one of the client's. (Those that an image carries are put into its config.)

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    sync::{Arc, Mutex, PoisonError},
};

use lapstrake_builder_cache::{ExportedRecords, ExportedResults, ImportedResult, OlderNames};
use lapstrake_builder_llb::cache_key::Versions;
use lapstrake_builder_progress::{Progress, StatusHandle, VertexHandle};
use lapstrake_builder_solver::KeyId;
use lapstrake_layerstore_oci::{
    Descriptor, Digest, Index, LayerCompression, Manifest, MediaType, Reference, Timestamp, gojson,
};
use lapstrake_layerstore_registry::{ProgressFn, PullTarget, PushSource, RegistryClient, TransferStatus};
use lapstrake_layerstore_store::{Lease, SnapshotName, StoreError, Stores, Tree};
use lapstrake_layerstore_transfer::{BlobOptions, ManifestForm, layer_blobs, layer_media_type, layers};
use lapstrake_session::SessionId;
use time::OffsetDateTime;
use tokio_util::sync::CancellationToken;

use super::{
    CREATED_AT, CacheExportOptions, CacheFault, CacheForm, CacheMode, CacheTarget, Imports, UNCOMPRESSED,
    blobs::ClientBlobs, directory::DirectoryWriter, imports::Brought, warn,
};
use crate::{
    Engine, EngineError, engine::internal_vertex, graphs::BuildKeys, ops::Workshop, scope::BuildScope,
};

/// Longest document of a cache that BuildKit reads (`cache/remotecache/import.go`).
const BUILDKIT_READS: usize = 1 << 20;

/// What a build made, for the caches that it leaves.
#[derive(Default)]
pub(crate) struct Solved {
    /// The results.
    pub(crate) trees: Vec<Tree>,
    /// The keys of each graph.
    pub(crate) keys: Vec<BuildKeys>,
    /// Those of the results.
    pub(crate) targets: Vec<KeyId>,
}

/// What a target gets.
struct Prepared {
    /// The blobs of the manifest, in its order.
    blobs: Vec<Descriptor>,
    /// Where those are that are not in the store, by digest.
    elsewhere: HashMap<Digest, usize>,
    config: Descriptor,
    manifest: Descriptor,
    /// Holds all that is in the store.
    lease: Arc<Lease>,
}

impl Engine {
    /// Leaves caches where they should be, one after the other; gives the last one's manifest.
    pub(crate) async fn export_caches(
        &self,
        targets: &[CacheTarget],
        solved: &Solved,
        imports: &Imports,
        scope: &Arc<BuildScope>,
        progress: &Progress,
        cancel: &CancellationToken,
    ) -> Result<Option<Descriptor>, EngineError> {
        let mut left = None;
        for target in targets {
            let (name, options) = match target {
                CacheTarget::Inline => continue,
                CacheTarget::Unsupported { kind } => {
                    let vertex = internal_vertex(progress, format!("exporting cache to {kind}"));
                    let why = format!("caches of type {kind} are not supported");
                    vertex.start();
                    vertex.fail(why.clone());
                    warn(&vertex, format!("failed to export cache: {why}"));
                    continue;
                }
                CacheTarget::Registry { options, .. } => ("exporting cache to registry", options),
                CacheTarget::Local { options, .. } | CacheTarget::Client { options, .. } => {
                    ("exporting cache to client directory", options)
                }
            };
            let vertex = internal_vertex(progress, name);
            let brought = match options.mode {
                CacheMode::Min => imports.here(),
                CacheMode::Max => imports.all().await,
            };
            let export = Export {
                workshop: Arc::clone(self.workshop()),
                vertex: vertex.clone(),
                brought,
                cancel: cancel.clone(),
            };
            vertex.start();
            let result = match target {
                CacheTarget::Inline | CacheTarget::Unsupported { .. } => Ok(None),
                CacheTarget::Registry { reference, insecure, options } => {
                    let cx = self.source_context(scope, vertex.clone(), cancel);
                    let client = self.workshop().sources.registry(&cx);
                    let client = if *insecure { client.with_insecure(reference.domain()) } else { client };
                    export.to_registry(solved, &client, reference, options).await
                }
                CacheTarget::Local { directory, tag, reset, options } => {
                    export.to_directory(solved, directory, tag, *reset, options).await
                }
                CacheTarget::Client { directory, options } => {
                    export.to_client(solved, scope.session.as_ref(), directory, options).await
                }
            };
            match result {
                Ok(manifest) => {
                    vertex.complete();
                    left = manifest.or(left);
                }
                Err(source) => {
                    let why = source.told();
                    vertex.fail(why.clone());
                    if !options.ignore_error {
                        return Err(EngineError::CacheTarget { name: target.shown(), source });
                    }
                    warn(&vertex, format!("failed to export cache to {}: {why}", target.shown()));
                }
            }
        }
        Ok(left)
    }
}

impl CacheTarget {
    fn shown(&self) -> String {
        match self {
            Self::Inline => "the image".to_owned(),
            Self::Unsupported { kind } => kind.clone(),
            Self::Registry { reference, .. } => reference.familiar(),
            Self::Local { directory, .. } => directory.display().to_string(),
            Self::Client { directory, .. } => directory.clone(),
        }
    }
}

/// Where a cache goes, to be asked what it has.
enum Destination<'a> {
    Registry { client: &'a RegistryClient, reference: &'a Reference },
    Directory(&'a DirectoryWriter),
    Client(&'a ClientBlobs),
}

impl Destination<'_> {
    async fn has(&self, blob: &Descriptor) -> Result<bool, CacheFault> {
        match self {
            Self::Registry { client, reference } => Ok(client.has_blob(reference, blob).await?),
            Self::Directory(writer) => Ok(writer.has(blob)),
            Self::Client(client) => client.has(blob).await,
        }
    }
}

struct Export {
    workshop: Arc<Workshop>,
    vertex: VertexHandle,
    brought: Vec<Brought>,
    cancel: CancellationToken,
}

impl Export {
    async fn to_registry(
        &self,
        solved: &Solved,
        client: &RegistryClient,
        reference: &Reference,
        options: &CacheExportOptions,
    ) -> Result<Option<Descriptor>, CacheFault> {
        let destination = Destination::Registry { client, reference };
        let Some(prepared) = self.complete(solved, options, &destination).await? else { return Ok(None) };
        let stores = &self.workshop.stores;
        let sending = self.vertex.part("sending cache export", "", 0);
        let source = PushSource {
            content: Arc::clone(&stores.content),
            root: prepared.manifest.clone(),
            mounts: BTreeMap::new(),
        };
        let progress = told_of(&self.vertex, &prepared);
        tokio::select! {
            pushed = client.push(reference, &source, &progress) => drop(pushed?),
            () = self.cancel.cancelled() => return Err(CacheFault::unsuitable("canceled")),
        }
        sending.done();
        Ok(Some(prepared.manifest))
    }

    async fn to_client(
        &self,
        solved: &Solved,
        session: Option<&SessionId>,
        directory: &str,
        options: &CacheExportOptions,
    ) -> Result<Option<Descriptor>, CacheFault> {
        let client = ClientBlobs::open(&self.workshop, session, directory).await?;
        let destination = Destination::Client(&client);
        let Some(prepared) = self.complete(solved, options, &destination).await? else { return Ok(None) };
        let Prepared { blobs, config, manifest, lease, .. } = prepared;
        // What names others comes after them: a client that is cut off has nothing that leads nowhere.
        for blob in blobs.iter().chain([&config, &manifest]) {
            if !client.has(blob).await? {
                let part = self.vertex.part(writing(blob, &config, &manifest), "", blob.size);
                client.put(blob, &self.workshop.stores, &self.cancel).await?;
                part.done();
            }
        }
        drop(lease);
        Ok(Some(manifest))
    }

    async fn to_directory(
        &self,
        solved: &Solved,
        directory: &std::path::Path,
        tag: &str,
        reset: bool,
        options: &CacheExportOptions,
    ) -> Result<Option<Descriptor>, CacheFault> {
        let at = directory.to_owned();
        let writer = CacheFault::blocking(move || DirectoryWriter::open(&at)).await?;
        let destination = Destination::Directory(&writer);
        let Some(prepared) = self.complete(solved, options, &destination).await? else { return Ok(None) };
        let (stores, vertex, tag) = (self.workshop.stores.clone(), self.vertex.clone(), tag.to_owned());
        let (cancel, directory) = (self.cancel.clone(), directory.to_owned());
        CacheFault::blocking(move || {
            let Prepared { blobs, config, manifest, lease, .. } = prepared;
            for blob in blobs.iter().chain([&config, &manifest]) {
                if cancel.is_cancelled() {
                    return Err(CacheFault::unsuitable("canceled"));
                }
                if !writer.has(blob) {
                    let part = vertex.part(writing(blob, &config, &manifest), "", blob.size);
                    writer.put(blob, stores.content.reader(&blob.digest)?)?;
                    part.done();
                }
            }
            // All that it names is there.
            writer.tag(&manifest, &tag)?;
            // As with BuildKit, the cache is there whether or not older ones could be tidied away.
            if reset && let Err(error) = writer.reset() {
                warn(&vertex, format!("nothing was removed from {}: {}", directory.display(), error.told()));
            }
            drop(lease);
            Ok(Some(manifest))
        })
        .await
    }

    /// Has all of it here that the destination lacks. What was brought and cannot be had any more is told and left out, as what nobody has.
    async fn complete(
        &self,
        solved: &Solved,
        options: &CacheExportOptions,
        destination: &Destination<'_>,
    ) -> Result<Option<Prepared>, CacheFault> {
        let mut lost = HashSet::new();
        loop {
            let Some(prepared) = self.prepare(solved, options, &lost).await? else { return Ok(None) };
            let before = lost.len();
            for blob in &prepared.blobs {
                // What is elsewhere comes here only if it has to go on from here.
                let Some(place) = prepared.elsewhere.get(&blob.digest) else { continue };
                if destination.has(blob).await? {
                    continue;
                }
                match self.fetch(blob, *place, &prepared.lease).await {
                    Err(error) if error.is_of_source() && !self.cancel.is_cancelled() => {
                        let why = error.told();
                        warn(
                            &self.vertex,
                            format!("left out of the exported cache, with what is made of it: {why}"),
                        );
                        lost.insert(blob.digest.clone());
                    }
                    fetched => fetched?,
                }
            }
            if lost.len() == before {
                return Ok(Some(prepared));
            }
        }
    }

    /// Has the documents made, and the blobs of all layers that are here. Brought results that need `lost` blobs are left out.
    async fn prepare(
        &self,
        solved: &Solved,
        options: &CacheExportOptions,
        lost: &HashSet<Digest>,
    ) -> Result<Option<Prepared>, CacheFault> {
        let preparing = self.vertex.part("preparing build cache for export", "", 0);
        let records = self.records(solved, options.mode).await?;
        let older = solved.keys.iter().fold(OlderNames::default(), |all, keys| all.and(&keys.older));
        let mut packer = Packer {
            stores: self.workshop.stores.clone(),
            options: options.clone(),
            lease: Arc::new(self.workshop.stores.leases.create()),
            cancel: self.cancel.clone(),
            packed: HashMap::new(),
        };
        let mut chains: Vec<Vec<Descriptor>> = Vec::new();
        let mut elsewhere = HashMap::new();
        for result in records.results() {
            let mut chain = Vec::new();
            if let Some(name) = &result.snapshot {
                // What is pruned meanwhile is left out.
                let (stores, name) = (self.workshop.stores.clone(), name.clone());
                if let Some(tree) = CacheFault::blocking(move || Ok(stores.hold(&name)?)).await? {
                    (packer, chain) = packer.pack(tree).await?;
                }
            } else if let Some((place, imported)) = &result.brought {
                match self.as_it_is(*place, imported, options) {
                    Some(blobs) if blobs.iter().any(|blob| lost.contains(&blob.digest)) => {}
                    Some(blobs) => {
                        elsewhere.extend(blobs.iter().map(|blob| (blob.digest.clone(), *place)));
                        chain = blobs;
                    }
                    // It has to be made into something else here.
                    None => {
                        if let Some(tree) = self.unpacked(*place, imported).await {
                            (packer, chain) = packer.pack(tree).await?;
                        }
                    }
                }
            }
            chains.push(chain);
        }
        let digests: Vec<Vec<Digest>> =
            chains.iter().map(|chain| chain.iter().map(|blob| blob.digest.clone()).collect()).collect();
        // BuildKit before 0.12 reads no document that is an image manifest's.
        let readers =
            if options.form == CacheForm::ImageManifest { Versions::SINCE_0_11 } else { Versions::ALL };
        let (document, json, is_cut) = records.within(BUILDKIT_READS, &older, readers, &digests);
        if is_cut {
            let without = "the cache is large: steps are not named as BuildKit before 0.18 does";
            warn(&self.vertex, without.to_owned());
        }
        if json.len() > BUILDKIT_READS {
            let size = json.len();
            warn(
                &self.vertex,
                format!("the cache's document has {size} bytes; BuildKit reads {BUILDKIT_READS} at most"),
            );
        }
        if document.is_empty() {
            drop(preparing);
            self.vertex.part("skipping cache export for empty result", "", 0).done();
            return Ok(None);
        }
        let known: HashMap<&Digest, &Descriptor> =
            chains.iter().flatten().map(|blob| (&blob.digest, blob)).collect();
        let blobs: Vec<Descriptor> = document.blobs().map(|digest| known[digest].clone()).collect();
        let config = Descriptor::of(MediaType::BUILDKIT_CACHE_CONFIG, &json);
        let (media_type, manifest) = manifest(options.form, &blobs, &config)?;
        let lease = packer.lease;
        let manifest_descriptor = Descriptor::of(media_type, &manifest);
        let (stores, held) = (self.workshop.stores.clone(), Arc::clone(&lease));
        CacheFault::blocking(move || {
            stores.content.write_small_held(&json, &held)?;
            stores.content.write_small_held(&manifest, &held)?;
            Ok(())
        })
        .await?;
        preparing.done();
        Ok(Some(Prepared { blobs, elsewhere, config, manifest: manifest_descriptor, lease }))
    }

    async fn records(&self, solved: &Solved, mode: CacheMode) -> Result<ExportedRecords, CacheFault> {
        let (workshop, trees) = (Arc::clone(&self.workshop), solved.trees.clone());
        // Asked now, when the brought caches that matter have come.
        let keys: Vec<Vec<KeyId>> = solved.keys.iter().flat_map(BuildKeys::all).collect();
        let targets = solved.targets.clone();
        let brought: Vec<_> = self.brought.iter().map(|brought| Arc::clone(&brought.cache)).collect();
        CacheFault::blocking(move || {
            let mut names = Vec::new();
            for tree in &trees {
                names.extend(snapshots(&workshop.stores, tree)?);
            }
            let wanted = match mode {
                CacheMode::Min => ExportedResults::Layers(&names),
                CacheMode::Max => ExportedResults::All,
            };
            Ok(workshop.cache.records_of(&keys, &targets, wanted, &brought)?)
        })
        .await
    }

    /// The blobs of a brought result, if they can go on as they are.
    fn as_it_is(
        &self,
        place: usize,
        result: &ImportedResult,
        options: &CacheExportOptions,
    ) -> Option<Vec<Descriptor>> {
        self.brought[place].blobs.as_ref()?;
        let form = media_form(options.form);
        let of = |layer: &lapstrake_builder_cache::ImportedLayer| {
            let compression = layer.blob.media_type.layer_compression()?;
            let fits = !options.force || compression == options.compression;
            // Docker has no media type that its programs know for it.
            let has_type = form == ManifestForm::Oci || compression != LayerCompression::Zstd;
            if !fits || !has_type || layer.blob.media_type.is_nondistributable() {
                return None;
            }
            let media_type = layer_media_type(compression, form);
            let mut blob = Descriptor::new(media_type, layer.blob.digest.clone(), layer.blob.size);
            for key in [UNCOMPRESSED, CREATED_AT] {
                if let Some(value) = layer.blob.annotations.get(key) {
                    blob.annotations.insert(key.to_owned(), value.clone());
                }
            }
            if let Some(diff_id) = &layer.diff_id {
                blob.annotations.insert(UNCOMPRESSED.to_owned(), diff_id.to_string());
            }
            Some(blob)
        };
        result.layers.iter().map(of).collect()
    }

    /// A brought result as a tree. One that cannot be had is left out, as one that nobody has.
    async fn unpacked(&self, place: usize, result: &ImportedResult) -> Option<Tree> {
        match self.brought[place].cache.fetch(result).await {
            Ok(tree) => Some(tree),
            Err(error) => {
                tracing::warn!(%error, "a brought result is not exported");
                None
            }
        }
    }

    async fn fetch(&self, blob: &Descriptor, place: usize, lease: &Arc<Lease>) -> Result<(), CacheFault> {
        let Some(source) = &self.brought[place].blobs else { return Ok(()) };
        let content = Arc::clone(&self.workshop.stores.content);
        let target = PullTarget { content, lease: Arc::clone(lease) };
        tokio::select! {
            fetched = source.fetch(blob, &target) => fetched,
            () = self.cancel.cancelled() => Err(CacheFault::unsuitable("canceled")),
        }
    }
}

/// The snapshots of a tree's layers, bottom first.
pub(crate) fn snapshots(stores: &Stores, tree: &Tree) -> Result<Vec<SnapshotName>, StoreError> {
    let mut names = Vec::new();
    let mut next = tree.snapshot().cloned();
    while let Some(name) = next {
        next = stores.snapshots.stat(&name)?.parent;
        names.push(name);
    }
    names.reverse();
    Ok(names)
}

/// Makes blobs of trees. It holds what it made.
struct Packer {
    stores: Stores,
    options: CacheExportOptions,
    lease: Arc<Lease>,
    cancel: CancellationToken,
    packed: HashMap<SnapshotName, Descriptor>,
}

impl Packer {
    /// The blobs of a tree's layers, bottom first; those of layers below others are made once.
    async fn pack(mut self, tree: Tree) -> Result<(Self, Vec<Descriptor>), CacheFault> {
        CacheFault::blocking(move || {
            let options = BlobOptions {
                compression: self.options.compression.into(),
                level: self.options.level,
                force: self.options.force,
            };
            let form = media_form(self.options.form);
            let mut chain = Vec::new();
            for layer in layers(&self.stores, &tree)? {
                if let Some(blob) = self.packed.get(&layer.snapshot) {
                    chain.push(blob.clone());
                    continue;
                }
                let layer = std::slice::from_ref(&layer);
                let mut made = layer_blobs(&self.stores, layer, &options, form, &self.lease, &self.cancel)?;
                let mut blob = made.pop().expect("a layer has a blob");
                let layer = &layer[0];
                let created = OffsetDateTime::from(self.stores.snapshots.stat(&layer.snapshot)?.created);
                blob.annotations.insert(UNCOMPRESSED.to_owned(), layer.diff_id.to_string());
                blob.annotations.insert(CREATED_AT.to_owned(), Timestamp::from(created).to_string());
                self.packed.insert(layer.snapshot.clone(), blob.clone());
                chain.push(blob);
            }
            Ok((self, chain))
        })
        .await
    }
}

fn media_form(form: CacheForm) -> ManifestForm {
    match form {
        CacheForm::ImageManifest | CacheForm::OciIndex => ManifestForm::Oci,
        CacheForm::DockerList => ManifestForm::Docker,
    }
}

/// What names the blobs, as BuildKit writes it.
fn manifest(
    form: CacheForm,
    blobs: &[Descriptor],
    config: &Descriptor,
) -> Result<(MediaType, Vec<u8>), CacheFault> {
    let media_type = match form {
        CacheForm::ImageManifest => {
            let manifest = Manifest::new(MediaType::OCI_MANIFEST, config.clone(), blobs.to_vec());
            return Ok((MediaType::OCI_MANIFEST, gojson::to_vec(&manifest)?));
        }
        CacheForm::OciIndex => MediaType::OCI_INDEX,
        CacheForm::DockerList => MediaType::DOCKER_MANIFEST_LIST,
    };
    let manifests = blobs.iter().chain([config]).cloned().collect();
    Ok((media_type.clone(), gojson::to_vec(&Index::new(media_type, manifests))?))
}

/// What is being written, in BuildKit's words.
fn writing(blob: &Descriptor, config: &Descriptor, manifest: &Descriptor) -> String {
    let digest = &blob.digest;
    if *digest == manifest.digest {
        format!("writing cache manifest {digest}")
    } else if *digest == config.digest {
        format!("writing config {digest}")
    } else {
        format!("writing layer {digest}")
    }
}

/// Tells the vertex what a push does.
fn told_of(vertex: &VertexHandle, prepared: &Prepared) -> ProgressFn {
    let (vertex, config, manifest) = (vertex.clone(), prepared.config.clone(), prepared.manifest.clone());
    let parts: Mutex<HashMap<Digest, StatusHandle>> = Mutex::default();
    Arc::new(move |event| {
        let mut parts = parts.lock().unwrap_or_else(PoisonError::into_inner);
        let blob = Descriptor::new(MediaType::OCI_LAYER, event.digest.clone(), event.total);
        let part = parts
            .entry(event.digest.clone())
            .or_insert_with(|| vertex.part(writing(&blob, &config, &manifest), "", event.total));
        match &event.status {
            TransferStatus::Uploading { current } => part.update(*current, event.total),
            TransferStatus::Uploaded | TransferStatus::ExistsRemotely | TransferStatus::Mounted { .. } => {
                drop(parts.remove(&event.digest));
            }
            _ => {}
        }
    })
}
