//! Blobs of layers: made when somebody needs them, each once, several at a time, and kept with their layers.
//!
//! A blob is written to the content store, held by the caller's lease before it is there, made durable by its commit, and only then recorded with its
//! layer: a crash in between leaves a blob that nothing names, which the next start collects.

use std::{
    collections::{BTreeMap, HashMap},
    io::{self, BufReader, BufWriter, Write},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use lapstrake_layerstore_diff::{Compression, Limits, write_estargz};
use lapstrake_layerstore_oci::{Descriptor, DiffId, Digest, LayerCompression, MediaType};
use lapstrake_layerstore_store::{Layer, Lease, Resource, Stores};
use parking_lot::Mutex;
use tokio_util::sync::CancellationToken;

use crate::{
    ManifestForm, TransferError, cancellable::Cancellable, gzip::gzip, layer_tar, manifest::hold_blob,
};

/// zstd's own default, which is BuildKit's too.
const ZSTD_LEVEL: i32 = 3;
/// Layers that are compressed at once: each has some blocks in memory.
const MOST_AT_ONCE: usize = 4;

/// Annotation of an eStargz blob: the digest of its table of contents.
pub(crate) const TOC_DIGEST: &str = "containerd.io/snapshot/stargz/toc.digest";

/// Annotation of an eStargz blob: the length of what it decompresses to.
const UNCOMPRESSED_SIZE: &str = "io.containers.estargz.uncompressed-size";
/// Annotation of a kept blob: what it decompresses to, where that is not the layer's own tar stream (eStargz has a table of contents behind it).
pub(crate) const UNCOMPRESSED: &str = "containerd.io/uncompressed";

/// What a layer's kept blob decompresses to; `layer` unless it says something else.
pub fn blob_content(blob: &Descriptor, layer: &DiffId) -> DiffId {
    let said = blob.annotations.get(UNCOMPRESSED).and_then(|text| Digest::parse(text).ok());
    said.map_or_else(|| layer.clone(), DiffId)
}

/// How a layer's blob is made.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum BlobCompression {
    /// A plain tar.
    Uncompressed,
    /// gzip.
    #[default]
    Gzip,
    /// gzip that can be read file by file, with a table of contents at its end (eStargz).
    Estargz,
    /// zstd.
    Zstd,
}

impl BlobCompression {
    /// By BuildKit's name.
    pub fn parse(name: &str) -> Option<Self> {
        match name {
            "uncompressed" => Some(Self::Uncompressed),
            "gzip" => Some(Self::Gzip),
            "estargz" => Some(Self::Estargz),
            "zstd" => Some(Self::Zstd),
            _ => None,
        }
    }

    /// Whether a blob is such a one already.
    pub fn made(self, blob: &Descriptor) -> bool {
        let has_contents = blob.annotations.contains_key(TOC_DIGEST);
        blob.media_type.layer_compression() == Some(self.layer_compression())
            && (self.layer_compression() != LayerCompression::Gzip || has_contents == (self == Self::Estargz))
    }

    /// What its media type tells.
    pub fn layer_compression(self) -> LayerCompression {
        match self {
            Self::Uncompressed => LayerCompression::None,
            Self::Gzip | Self::Estargz => LayerCompression::Gzip,
            Self::Zstd => LayerCompression::Zstd,
        }
    }
}

impl From<LayerCompression> for BlobCompression {
    fn from(compression: LayerCompression) -> Self {
        match compression {
            LayerCompression::None => Self::Uncompressed,
            LayerCompression::Gzip => Self::Gzip,
            LayerCompression::Zstd => Self::Zstd,
        }
    }
}

/// What blobs of layers are to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct BlobOptions {
    /// How layers are compressed that have no blob.
    pub compression: BlobCompression,
    /// How hard: up to 9 for gzip, up to 22 for zstd; `None` is each one's own default.
    pub level: Option<u32>,
    /// Whether a blob that a layer has already, in another compression, is of no use.
    pub force: bool,
}

/// Blobs of layers, which the caller holds, as a manifest names them; the lease holds the blobs. Those that are made now are kept with their layers. Blocks.
pub fn layer_blobs(
    stores: &Stores,
    layers: &[Layer],
    options: &BlobOptions,
    form: ManifestForm,
    lease: &Lease,
    cancel: &CancellationToken,
) -> Result<Vec<Descriptor>, TransferError> {
    let blobs = make_blobs(stores, layers, options, lease, cancel, &|_| ())?;
    Ok(blobs.iter().map(|blob| described(blob, form)).collect())
}

/// The same, as they are kept: with where they came from ([`blob_lenders`](crate::blob_lenders)). `ready` is told of each blob as soon as it is there, from
/// the threads that make them; it must not block.
pub fn make_blobs(
    stores: &Stores,
    layers: &[Layer],
    options: &BlobOptions,
    lease: &Lease,
    cancel: &CancellationToken,
    ready: &(dyn Fn(&Descriptor) + Sync),
) -> Result<Vec<Descriptor>, TransferError> {
    let threads = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let threads = threads.min(MOST_AT_ONCE).min(layers.len());
    let made: Mutex<Vec<Option<Descriptor>>> = Mutex::new(vec![None; layers.len()]);
    let (next, stop) = (AtomicUsize::new(0), cancel.child_token());
    let work = || -> Result<(), TransferError> {
        while let Some((index, layer)) = {
            let index = next.fetch_add(1, Ordering::Relaxed);
            layers.get(index).map(|layer| (index, layer))
        } {
            // The first failure ends the others' work.
            let blob = layer_blob(stores, layer, options, lease, &stop).inspect_err(|_| stop.cancel())?;
            ready(&blob);
            made.lock()[index] = Some(blob);
        }
        Ok(())
    };
    let results: Vec<Result<(), TransferError>> = match threads {
        0 | 1 => vec![work()],
        _ => std::thread::scope(|scope| {
            let workers: Vec<_> = (0..threads).map(|_| scope.spawn(work)).collect();
            workers
                .into_iter()
                .map(|worker| worker.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
                .collect()
        }),
    };
    let failures = results.into_iter().filter_map(Result::err);
    // What stopped the others explains more than that they were stopped.
    if let Some(failure) = failures.min_by_key(|error| matches!(error, TransferError::Canceled)) {
        return Err(failure);
    }
    Ok(made.into_inner().into_iter().flatten().collect())
}

/// Blobs that are being made in this process, so that none is made twice.
static BEING_MADE: Mutex<Option<HashMap<Making, Arc<Mutex<()>>>>> = Mutex::new(None);
type Making = (DiffId, BlobCompression, Option<u32>);

/// Waits until nobody else makes the blob, and keeps others from it while `work` runs.
fn alone<T>(
    making: Making,
    cancel: &CancellationToken,
    work: impl FnOnce() -> Result<T, TransferError>,
) -> Result<T, TransferError> {
    let turn = Arc::clone(BEING_MADE.lock().get_or_insert_default().entry(making.clone()).or_default());
    let result = loop {
        if cancel.is_cancelled() {
            break Err(TransferError::Canceled);
        }
        if let Some(_mine) = turn.try_lock_for(Duration::from_millis(50)) {
            break work();
        }
    };
    let mut all = BEING_MADE.lock();
    drop(turn);
    if let Some(all) = all.as_mut()
        && all.get(&making).is_some_and(|turn| Arc::strong_count(turn) == 1)
    {
        all.remove(&making);
    }
    result
}

/// A layer's blob, made when there is none that fits.
fn layer_blob(
    stores: &Stores,
    layer: &Layer,
    options: &BlobOptions,
    lease: &Lease,
    cancel: &CancellationToken,
) -> Result<Descriptor, TransferError> {
    if let Some(blob) = kept_blob(stores, layer, options, lease)? {
        return Ok(blob);
    }
    alone((layer.diff_id.clone(), options.compression, options.level), cancel, || {
        // Whoever made it meanwhile has recorded it.
        match kept_blob(stores, layer, options, lease)? {
            Some(blob) => Ok(blob),
            None => make_blob(stores, layer, options, lease, cancel),
        }
    })
}

/// A blob that the layer has and that will do, held.
fn kept_blob(
    stores: &Stores,
    layer: &Layer,
    options: &BlobOptions,
    lease: &Lease,
) -> Result<Option<Descriptor>, TransferError> {
    let is_wanted = |blob: &Descriptor| options.compression.made(blob);
    let mut blobs = stores.layers.blobs(&layer.diff_id)?;
    blobs.sort_by_key(|blob| !is_wanted(blob));
    for blob in blobs {
        // A blob of another layer than the tree's is for who asks for such.
        let is_other = blob_content(&blob, &layer.diff_id) != layer.diff_id;
        let fits = blob.media_type.is_layer()
            && (is_wanted(&blob) || !(options.force || is_other))
            && !blob.media_type.is_nondistributable();
        if fits && hold_blob(stores, &blob.digest, lease)? == Some(blob.size) {
            return Ok(Some(blob));
        }
    }
    Ok(None)
}

fn make_blob(
    stores: &Stores,
    layer: &Layer,
    options: &BlobOptions,
    lease: &Lease,
    cancel: &CancellationToken,
) -> Result<Descriptor, TransferError> {
    let mut writer = stores.content.writer()?;
    let compressed = compress(&mut Cancellable { inner: &mut writer, cancel }, options, |out| {
        layer_tar(stores, layer, out)
    });
    if cancel.is_cancelled() {
        return Err(TransferError::Canceled);
    }
    let annotations = compressed?;
    let (digest, size) = (writer.digest(), writer.offset());
    // Held before it is there, so that collection never sees it unheld.
    lease.hold(Resource::Blob(digest.clone()));
    writer.commit(Some(&digest), Some(size))?;
    let media_type = layer_media_type(options.compression.layer_compression(), ManifestForm::Docker);
    let blob = Descriptor { annotations, ..Descriptor::new(media_type, digest, size) };
    stores.layers.record_blob(&layer.diff_id, &blob)?;
    Ok(blob)
}

/// Compresses what `produce` writes; returns what is to be said of the blob.
fn compress(
    out: &mut (dyn Write + Send),
    options: &BlobOptions,
    produce: impl FnOnce(&mut dyn Write) -> Result<(), TransferError> + Send,
) -> Result<BTreeMap<String, String>, TransferError> {
    const DOING: &str = "compress a layer";
    match options.compression {
        BlobCompression::Uncompressed => produce(out)?,
        BlobCompression::Estargz => return estargz(out, options.level, produce),
        BlobCompression::Gzip => {
            let level = options.level.map_or_else(flate2::Compression::default, flate2::Compression::new);
            gzip(out, level, |plain| produce(plain).map_err(Produced::Transfer)).map_err(
                |error| match error {
                    Produced::Transfer(error) => error,
                    Produced::Io(error) => TransferError::io(DOING)(error),
                },
            )?;
        }
        BlobCompression::Zstd => {
            let level = options.level.and_then(|level| i32::try_from(level).ok()).unwrap_or(ZSTD_LEVEL);
            let mut encoder =
                zstd::stream::write::Encoder::new(out, level).map_err(TransferError::io(DOING))?;
            // One worker beside this thread; the bytes do not depend on how many there are.
            encoder.multithread(1).map_err(TransferError::io(DOING))?;
            produce(&mut encoder)?;
            encoder.finish().map_err(TransferError::io(DOING))?;
        }
    }
    Ok(BTreeMap::new())
}

fn estargz(
    out: &mut dyn Write,
    level: Option<u32>,
    produce: impl FnOnce(&mut dyn Write) -> Result<(), TransferError> + Send,
) -> Result<BTreeMap<String, String>, TransferError> {
    let (reader, writer) = io::pipe().map_err(TransferError::io("open a pipe"))?;
    let written = std::thread::scope(|scope| {
        let producing = scope.spawn(move || {
            let mut writer = BufWriter::with_capacity(256 << 10, writer);
            produce(&mut writer)?;
            writer.flush().map_err(TransferError::io("write a layer"))
        });
        let reader = BufReader::with_capacity(256 << 10, reader);
        let written = write_estargz(reader, level, &Limits::default(), out);
        // Its reader is gone by now, so the producer ends.
        let produced = producing.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        let written = written.map_err(TransferError::layer("in eStargz' form"))?;
        produced.map(|()| written)
    })?;
    Ok(BTreeMap::from([
        (TOC_DIGEST.to_owned(), written.contents.to_string()),
        (UNCOMPRESSED_SIZE.to_owned(), written.size.to_string()),
        (UNCOMPRESSED.to_owned(), written.diff_id.to_string()),
    ]))
}

/// An error of making a layer, or of compressing it.
enum Produced {
    Transfer(TransferError),
    Io(io::Error),
}

impl From<io::Error> for Produced {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

/// A blob's descriptor in a manifest of this form. Nothing is carried along from where it was pulled but, in OCI's form, what makes eStargz of gzip.
pub fn described(blob: &Descriptor, form: ManifestForm) -> Descriptor {
    let compression = blob.media_type.layer_compression().unwrap_or(LayerCompression::None);
    let mut described = Descriptor::new(layer_media_type(compression, form), blob.digest.clone(), blob.size);
    if form == ManifestForm::Oci {
        for key in [TOC_DIGEST, UNCOMPRESSED_SIZE] {
            let said = blob.annotations.get(key).map(|value| (key.to_owned(), value.clone()));
            described.annotations.extend(said);
        }
    }
    described
}

/// The media type of a layer that is compressed so.
pub fn layer_media_type(compression: LayerCompression, form: ManifestForm) -> MediaType {
    match (form, compression) {
        (ManifestForm::Docker, LayerCompression::None) => MediaType::DOCKER_LAYER,
        (ManifestForm::Docker, LayerCompression::Gzip) => MediaType::DOCKER_LAYER_GZIP,
        (ManifestForm::Docker, LayerCompression::Zstd) => MediaType::DOCKER_LAYER_ZSTD,
        (ManifestForm::Oci, LayerCompression::None) => MediaType::OCI_LAYER,
        (ManifestForm::Oci, LayerCompression::Gzip) => MediaType::OCI_LAYER_GZIP,
        (ManifestForm::Oci, LayerCompression::Zstd) => MediaType::OCI_LAYER_ZSTD,
    }
}

/// The media type of a blob that is compressed so, where there is one.
pub(crate) fn media_type_of(compression: Compression) -> Option<MediaType> {
    let compression = match compression {
        Compression::None => LayerCompression::None,
        Compression::Gzip => LayerCompression::Gzip,
        Compression::Zstd => LayerCompression::Zstd,
        Compression::Bzip2 | Compression::Xz => return None,
    };
    Some(layer_media_type(compression, ManifestForm::Docker))
}
