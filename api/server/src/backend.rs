//! What the doors need done, as contracts that the daemon connects.

use std::{any::Any, pin::Pin};

use bytes::Bytes;
use futures::{Stream, future::BoxFuture};
use lapstrake_api_types::{
    AuthConfig, BuildQuery, CachePruneReport, CacheRecord, DistributionInspect, PruneQuery,
};
use lapstrake_builder_engine::{BuildRequest, EngineError, Exported};
use lapstrake_builder_progress::{Progress, classic::ClassicScript};
use lapstrake_layerstore_oci::{Digest, ImageId, Platform, Reference};
use lapstrake_session::SessionId;
use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::CancellationToken;

use crate::ApiError;

/// A request's body as it comes.
pub type BodyStream = Pin<Box<dyn Stream<Item = std::io::Result<Bytes>> + Send>>;

/// A context that was received and stored; the engine knows what is in it. Dropping it frees it.
pub struct ReceivedContext(pub Box<dyn Any + Send>);

/// Where a build's files are.
pub enum BuildContext {
    /// With the client's session.
    Session,
    /// In the store.
    Received(ReceivedContext),
    /// Behind a URL: git repository, archive, or Dockerfile.
    Url(String),
}

/// One build, as a client ordered it.
pub struct BuildOrder {
    /// By which it may be cancelled; random when the client gave none.
    pub id: String,
    /// Everything that was asked for.
    pub query: BuildQuery,
    /// The client's session.
    pub session: Option<SessionId>,
    /// Its files.
    pub context: BuildContext,
    /// Credentials that came with the request, by registry.
    pub auth: Vec<(String, AuthConfig)>,
    /// Takes the Dockerfile's steps once they are planned, before the first is solved.
    pub steps: Option<oneshot::Sender<ClassicScript>>,
}

/// What a build left behind.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Built {
    /// The image, when one was made. Of several platforms', the one that its names point at.
    pub image: Option<ImageId>,
    /// What the client is told to have been made: the index, or else the image.
    pub digest: Option<Digest>,
    /// Names that were put on it, in the order asked for.
    pub names: Vec<Reference>,
}

/// Runs builds.
pub trait Builds: Send + Sync {
    /// Takes a body in: a tar stream (plain or compressed), unpacked into the store. Never in memory; dropping the future or
    /// cancelling leaves nothing behind.
    fn receive_context(
        &self,
        body: BodyStream,
        cancel: CancellationToken,
    ) -> BoxFuture<'_, Result<ReceivedContext, ApiError>>;

    /// Makes a context that holds a Dockerfile and nothing else, under `name`.
    fn receive_dockerfile(
        &self,
        name: String,
        text: Bytes,
    ) -> BoxFuture<'_, Result<ReceivedContext, ApiError>>;

    /// Runs a build to its end. `progress` is dropped when the build has said its last word.
    fn build(
        &self,
        order: BuildOrder,
        progress: Progress,
        cancel: CancellationToken,
    ) -> BoxFuture<'_, Result<Built, ApiError>>;

    /// The same for a build that its client described in the engine's own terms.
    fn solve(
        &self,
        request: BuildRequest,
        progress: Progress,
        cancel: CancellationToken,
    ) -> BoxFuture<'_, Result<Exported, EngineError>>;
}

/// The build cache. Methods block.
pub trait BuildCache: Send + Sync {
    /// All records.
    fn records(&self) -> Result<Vec<CacheRecord>, ApiError>;

    /// Removes records and frees what nobody else needs.
    fn prune(&self, query: &PruneQuery) -> Result<CachePruneReport, ApiError>;
}

/// What a transfer says while it runs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TransferNews {
    /// A line about the whole, or about `id`: `Pulling from library/busybox`.
    Status {
        /// What it is about; the tag, for a pull's first line.
        id: Option<String>,
        /// The line.
        text: String,
    },
    /// A part's work: `Downloading`, `Extracting`, `Pull complete`.
    Progress {
        /// The part, a layer's first 12 hex digits.
        id: String,
        /// What is being done.
        action: String,
        /// Bytes done.
        current: u64,
        /// Bytes in all; 0 when not known.
        total: u64,
    },
    /// Text for the terminal (load).
    Text(String),
}

/// Takes news. A receiver that reads slowly slows the transfer down; one that is gone is no error.
pub type TransferSink = mpsc::Sender<TransferNews>;

/// Where an archive goes, chunk by chunk. A receiver that is gone ends the transfer.
pub type SaveSink = mpsc::Sender<Bytes>;

/// Writes an archive; the images that were saved.
pub type Saving = BoxFuture<'static, Result<Vec<ImageId>, ApiError>>;

/// A pull.
#[derive(Debug, Clone)]
pub struct PullOrder {
    /// What: a tag or a digest, or neither for all tags.
    pub reference: Reference,
    /// For which platform; the host's when not said.
    pub platform: Option<Platform>,
    /// Credentials.
    pub auth: AuthConfig,
}

/// What a pull brought.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pulled {
    /// Names that were put on images, and the images.
    pub images: Vec<(Reference, ImageId)>,
    /// The digest that the registry names it by, when one name was pulled.
    pub digest: Option<Digest>,
    /// Whether anything was new.
    pub is_newer: bool,
}

/// A push.
#[derive(Debug, Clone)]
pub struct PushOrder {
    /// What: a tag, or none for all tags of the repository.
    pub reference: Reference,
    /// One platform of an index.
    pub platform: Option<Platform>,
    /// Credentials.
    pub auth: AuthConfig,
}

/// What a push left in the registry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pushed {
    /// Each tag with its manifest's digest and size.
    pub manifests: Vec<(Reference, Digest, u64)>,
}

/// An archive to load.
#[derive(Debug, Clone, Default)]
pub struct LoadOrder {
    /// Which platforms of an index; all when empty.
    pub platforms: Vec<Platform>,
    /// Say nothing but the images' names.
    pub quiet: bool,
}

/// What an archive held.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Loaded {
    /// Each image with the names that it has in the archive.
    pub images: Vec<(ImageId, Vec<Reference>)>,
}

/// Images to write as one archive.
#[derive(Debug, Clone)]
pub struct SaveOrder {
    /// What the client called them: names, ids, or repositories (all tags).
    pub names: Vec<String>,
    /// Which platforms of an index; all when empty.
    pub platforms: Vec<Platform>,
}

/// A tree's archive to make an image of.
#[derive(Debug, Clone, Default)]
pub struct ImportOrder {
    /// The image's name.
    pub reference: Option<Reference>,
    /// Its platform; the host's when not said.
    pub platform: Option<Platform>,
    /// Its message.
    pub message: String,
    /// Dockerfile instructions to apply (`CMD`, `ENV`, …).
    pub changes: Vec<String>,
}

/// An image made of an archive.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Imported {
    /// The image.
    pub id: ImageId,
}

/// Moves images into and out of the store. Futures may be dropped at any point: nothing half-done stays.
pub trait ImageTransfer: Send + Sync {
    /// Pulls from a registry.
    fn pull(&self, order: PullOrder, news: TransferSink) -> BoxFuture<'_, Result<Pulled, ApiError>>;

    /// Pushes to a registry.
    fn push(&self, order: PushOrder, news: TransferSink) -> BoxFuture<'_, Result<Pushed, ApiError>>;

    /// Loads an archive.
    fn load(
        &self,
        order: LoadOrder,
        archive: BodyStream,
        news: TransferSink,
    ) -> BoxFuture<'_, Result<Loaded, ApiError>>;

    /// Resolves what is to be saved, so that what is not there is an error before the first byte; the future that is returned then
    /// writes the archive.
    fn save(&self, order: SaveOrder, sink: SaveSink) -> BoxFuture<'_, Result<Saving, ApiError>>;

    /// Makes an image of a tree's archive.
    fn import(&self, order: ImportOrder, archive: BodyStream) -> BoxFuture<'_, Result<Imported, ApiError>>;

    /// Opens an archive behind a URL (`fromSrc=http://…`), with its length where known.
    fn download(&self, url: String) -> BoxFuture<'_, Result<(BodyStream, Option<u64>), ApiError>>;

    /// What a name points to in its registry.
    fn inspect(
        &self,
        reference: Reference,
        auth: AuthConfig,
    ) -> BoxFuture<'_, Result<DistributionInspect, ApiError>>;

    /// Tries credentials on their registry; an identity token when the registry gives one.
    fn authenticate(&self, auth: AuthConfig) -> BoxFuture<'_, Result<Option<String>, ApiError>>;
}
