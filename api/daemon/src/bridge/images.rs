//! Images in and out, by the transfer crate and the registry client.

use std::{collections::BTreeMap, sync::Arc};

use bytes::Bytes;
use futures::{StreamExt as _, future::BoxFuture};
use lapstrake_api_server::{
    ApiError, ApiErrorKind, BodyStream, ImageTransfer, ImportOrder, Imported, LoadOrder, Loaded, PullOrder,
    Pulled, PushOrder, Pushed, SaveOrder, SaveSink, Saving, TransferNews, TransferSink, check_platform,
};
use lapstrake_api_types::{AuthConfig, DistributionInspect};
use lapstrake_layerstore_oci::{ImageId, Index, Platform, Reference};
use lapstrake_layerstore_registry::{Item, ProgressFn, RegistryClient, TransferEvent, TransferStatus};
use lapstrake_layerstore_store::{ImageName, ImageRecord, Stores};
use lapstrake_layerstore_transfer::{
    ErrorKind, HeldImages, LoadEvent, PullOutcome, SaveImage, TransferError, UnpackEvent, import, load, pull,
    push, save, stored_manifest,
};
use parking_lot::Mutex;
use tokio::sync::mpsc;
use tokio_util::{
    io::{StreamReader, SyncIoBridge},
    sync::CancellationToken,
};

use super::{changes, credentials, download};
use crate::{blocking::blocking, error::chain, sweeper::Sweep};

/// News of a transfer that may wait for a client that reads slowly; byte counts beyond are left out.
const NEWS_DEPTH: usize = 4096;

/// The image store and registries, as the doors want them.
pub(crate) struct StoreTransfer {
    stores: Stores,
    registry: RegistryClient,
    sweep: Sweep,
}

impl StoreTransfer {
    /// `sweep` is asked for after transfers, which may leave what nobody needs.
    pub(crate) fn new(stores: Stores, registry: RegistryClient, sweep: Sweep) -> Self {
        Self { stores, registry, sweep }
    }

    fn client(&self, registry: &str, auth: &AuthConfig) -> RegistryClient {
        self.registry.with_credentials(Arc::new(credentials::by_registry([(registry, auth)])))
    }
}

impl ImageTransfer for StoreTransfer {
    fn pull(&self, order: PullOrder, news: TransferSink) -> BoxFuture<'_, Result<Pulled, ApiError>> {
        Box::pin(async move {
            let client = self.client(order.reference.domain(), &order.auth);
            let platform = order.platform.unwrap_or_else(Platform::host);
            let is_all = order.reference.is_name_only();
            let references = if is_all {
                client.tags(&order.reference).await.map_err(|error| transfer_error(&error.into()))?
            } else {
                vec![order.reference]
            };
            let (feed, forward) = feed(news);
            // Dropped with this future, which is what its client's end does.
            let cancel = CancellationToken::new();
            let _cancelled = cancel.clone().drop_guard();
            // Owns the feeds: they end with it, and with them the forwarding.
            let work = async move {
                let mut pulled = Pulled { images: Vec::new(), digest: None, is_newer: false };
                for reference in references {
                    let outcome = self.pull_one(&client, &reference, &platform, &feed, &cancel).await?;
                    pulled.images.push((outcome.reference, outcome.id));
                    pulled.is_newer |= outcome.is_newer;
                    if is_all {
                        let text = format!("Digest: {}", outcome.digest);
                        feed.say(TransferNews::Status { id: None, text });
                    } else {
                        pulled.digest = Some(outcome.digest);
                    }
                }
                Ok(pulled)
            };
            let (pulled, ()) = tokio::join!(work, forward);
            self.sweep.soon();
            pulled.map_err(|error| transfer_error(&error))
        })
    }

    fn push(&self, order: PushOrder, news: TransferSink) -> BoxFuture<'_, Result<Pushed, ApiError>> {
        Box::pin(async move {
            let client = self.client(order.reference.domain(), &order.auth);
            let records = self.to_push(&order.reference).await?;
            if let Some(platform) = order.platform.clone() {
                let (stores, records) = (self.stores.clone(), records.clone());
                blocking(move || {
                    records.iter().try_for_each(|(record, reference)| {
                        let index = record.index_of(reference);
                        if let Some(index) = index
                            && stored_manifest(&stores, index, &platform)
                                .map_err(|error| transfer_error(&error))?
                                .is_some()
                        {
                            return Ok(());
                        }
                        check_platform(record, &reference.familiar(), &platform)
                    })
                })
                .await?;
            }
            let platform = order.platform;
            let (feed, forward) = feed(news);
            let cancel = CancellationToken::new();
            let _cancelled = cancel.clone().drop_guard();
            let progress: ProgressFn = Arc::new(move |event: TransferEvent| {
                if let Item::Layer(_) = event.item {
                    feed.layer(&event);
                }
            });
            let work = async move {
                let mut manifests = Vec::with_capacity(records.len());
                for (record, reference) in records {
                    let pushed = push(
                        &self.stores,
                        &client,
                        &record,
                        &reference,
                        platform.as_ref(),
                        &progress,
                        &cancel,
                    )
                    .await?;
                    manifests.push((pushed.reference, pushed.descriptor.digest, pushed.descriptor.size));
                }
                Ok(manifests)
            };
            let (manifests, ()) = tokio::join!(work, forward);
            self.sweep.soon();
            let manifests = manifests.map_err(|error: TransferError| transfer_error(&error))?;
            Ok(Pushed { manifests })
        })
    }

    fn load(
        &self,
        order: LoadOrder,
        archive: BodyStream,
        news: TransferSink,
    ) -> BoxFuture<'_, Result<Loaded, ApiError>> {
        Box::pin(async move {
            let (feed, forward) = feed(news);
            let cancel = CancellationToken::new();
            let _cancelled = cancel.clone().drop_guard();
            let (stores, reader) = (self.stores.clone(), readable(archive, &cancel));
            let work = blocking(move || {
                let report = |event: LoadEvent| {
                    if !order.quiet {
                        feed.loading(&event);
                    }
                };
                load(&stores, reader, &order.platforms, &cancel, &report)
            });
            let (loaded, ()) = tokio::join!(work, forward);
            self.sweep.soon();
            let loaded = loaded.map_err(|error| archive_error(&error))?;
            Ok(Loaded { images: loaded.into_iter().map(|image| (image.id, image.names)).collect() })
        })
    }

    fn save(&self, order: SaveOrder, sink: SaveSink) -> BoxFuture<'_, Result<Saving, ApiError>> {
        Box::pin(async move {
            let stores = self.stores.clone();
            let names = order.names.clone();
            let images = blocking(move || images_to_save(&stores, &names)).await?;
            // An image here is for one platform: whoever wants another one wants what is not there.
            for image in &images {
                for platform in &order.platforms {
                    let name =
                        image.names.first().map_or_else(|| image.record.id.to_string(), Reference::familiar);
                    check_platform(&image.record, &name, platform)?;
                }
            }
            let ids: Vec<ImageId> = images.iter().map(|image| image.record.id.clone()).collect();
            // Held before the answer begins: nothing that removes images meanwhile can cut it off.
            let stores = self.stores.clone();
            let images = blocking(move || HeldImages::new(&stores, &images))
                .await
                .map_err(|error| transfer_error(&error))?;
            let stores = self.stores.clone();
            let saving: Saving = Box::pin(async move {
                let cancel = CancellationToken::new();
                let _cancelled = cancel.clone().drop_guard();
                let out = std::io::BufWriter::with_capacity(256 << 10, ChunkWriter(sink));
                blocking(move || save(&stores, &images, out, &cancel))
                    .await
                    .map_err(|error| transfer_error(&error))?;
                Ok(ids)
            });
            Ok(saving)
        })
    }

    fn import(&self, order: ImportOrder, archive: BodyStream) -> BoxFuture<'_, Result<Imported, ApiError>> {
        Box::pin(async move {
            let platform = order.platform.unwrap_or_else(Platform::host);
            let config = changes::config(&platform, &order.changes)?;
            let names = order
                .reference
                .map(|reference| ImageName { reference: reference.with_default_tag(), target: None })
                .into_iter()
                .collect();
            let cancel = CancellationToken::new();
            let _cancelled = cancel.clone().drop_guard();
            let reader = readable(archive, &cancel);
            let stores = self.stores.clone();
            let imported =
                blocking(move || import(&stores, reader, config, &order.message, names, &cancel)).await;
            self.sweep.soon();
            Ok(Imported { id: imported.map_err(|error| archive_error(&error))? })
        })
    }

    fn download(&self, url: String) -> BoxFuture<'_, Result<(BodyStream, Option<u64>), ApiError>> {
        Box::pin(async move { download::open(&url).await })
    }

    fn inspect(
        &self,
        reference: Reference,
        auth: AuthConfig,
    ) -> BoxFuture<'_, Result<DistributionInspect, ApiError>> {
        Box::pin(async move {
            let client = self.client(reference.domain(), &auth);
            let resolved = client.resolve(&reference).await.map_err(|error| transfer_error(&error.into()))?;
            let document = client
                .fetch_document(&reference, &resolved.descriptor)
                .await
                .map_err(|error| transfer_error(&error.into()))?;
            let platforms = Index::from_json(&document)
                .ok()
                .map(|index| index.manifests.into_iter().filter_map(|manifest| manifest.platform).collect());
            Ok(DistributionInspect { descriptor: resolved.descriptor, platforms })
        })
    }

    fn authenticate(&self, auth: AuthConfig) -> BoxFuture<'_, Result<Option<String>, ApiError>> {
        Box::pin(async move {
            let address = auth.server_address.as_str();
            let domain = address.split_once("://").map_or(address, |(_, rest)| rest);
            let domain = domain.split('/').next().unwrap_or(domain);
            let domain = if matches!(domain, "" | "index.docker.io") { "docker.io" } else { domain };
            let client = self.client(domain, &auth);
            client.check_credentials(domain).await.map_err(|error| transfer_error(&error.into()))?;
            Ok(None)
        })
    }
}

impl StoreTransfer {
    /// Pulls what one tag or digest means, with its layers' news.
    async fn pull_one(
        &self,
        client: &RegistryClient,
        reference: &Reference,
        platform: &Platform,
        feed: &Feed,
        cancel: &CancellationToken,
    ) -> Result<PullOutcome, TransferError> {
        let id = reference.tag().map_or_else(|| reference.familiar(), str::to_owned);
        feed.say(TransferNews::Status { id: Some(id), text: format!("Pulling from {}", reference.path()) });
        let layers = Arc::new(Mutex::new(BTreeMap::new()));
        let (told, progress) = (feed.clone(), Arc::clone(&layers));
        let progress: ProgressFn = Arc::new(move |event: TransferEvent| {
            if let Item::Layer(index) = event.item {
                progress.lock().insert(index, event.id().to_owned());
                told.layer(&event);
            }
        });
        let told = feed.clone();
        let unpacking = Arc::new(move |index: usize, event: UnpackEvent| {
            let Some(id) = layers.lock().get(&index).cloned() else { return };
            let text = match event {
                UnpackEvent::Exists => return,
                UnpackEvent::Extracting => "Extracting",
                UnpackEvent::Extracted => "Pull complete",
            };
            told.say(TransferNews::Status { id: Some(id), text: text.to_owned() });
        });
        pull(&self.stores, client, reference, platform, &progress, unpacking, cancel).await
    }

    /// The image that a tag means; without a tag, all tags of the repository.
    async fn to_push(&self, reference: &Reference) -> Result<Vec<(ImageRecord, Reference)>, ApiError> {
        let (stores, reference) = (self.stores.clone(), reference.clone());
        blocking(move || {
            if !reference.is_name_only() {
                return Ok(vec![(stores.images.find(&reference.to_string())?, reference)]);
            }
            let mut found = Vec::new();
            for record in stores.images.list()? {
                let names: Vec<Reference> = tagged(&record, &reference.name()).collect();
                found.extend(names.into_iter().map(|name| (record.clone(), name)));
            }
            if found.is_empty() {
                let name = reference.name();
                return Err(ApiError::not_found(format!(
                    "An image does not exist locally with the tag: {name}"
                )));
            }
            Ok(found)
        })
        .await
    }
}

/// An image's tags in a repository.
fn tagged<'a>(record: &'a ImageRecord, repository: &'a str) -> impl Iterator<Item = Reference> + 'a {
    let names = record.names.iter().map(|name| &name.reference);
    names.filter(move |name| name.tag().is_some() && name.name() == repository).cloned()
}

/// What a client means by the names that it wants saved: an id is the image without a name, a name is the image with that name, and a
/// repository is all of its tags.
fn images_to_save(stores: &Stores, names: &[String]) -> Result<Vec<SaveImage>, ApiError> {
    let mut images: Vec<SaveImage> = Vec::new();
    let mut add = |record: ImageRecord, names: Vec<Reference>| match images
        .iter_mut()
        .find(|image| image.record.id == record.id)
    {
        Some(image) => {
            let new = names.into_iter().filter(|name| !image.names.contains(name)).collect::<Vec<_>>();
            image.names.extend(new);
        }
        None => images.push(SaveImage { record, names }),
    };
    for text in names {
        let reference = Reference::parse(text).ok();
        if let Some(repository) = reference.as_ref().filter(|reference| reference.is_name_only()) {
            let mut is_repository = false;
            for record in stores.images.list()? {
                let tags: Vec<Reference> = tagged(&record, &repository.name()).collect();
                if !tags.is_empty() {
                    is_repository = true;
                    add(record, tags);
                }
            }
            if is_repository {
                continue;
            }
        }
        let record = stores.images.find(text)?;
        let name = reference.filter(|reference| {
            reference.tag().is_some() && record.names.iter().any(|name| name.reference == *reference)
        });
        add(record, name.into_iter().collect());
    }
    Ok(images)
}

/// A body as a reader for a thread that may block. It ends early once nobody waits any more.
fn readable(body: BodyStream, cancel: &CancellationToken) -> impl std::io::Read + Send + 'static {
    SyncIoBridge::new(StreamReader::new(Box::pin(body.take_until(cancel.clone().cancelled_owned()))))
}

/// The failure of a transfer between the stores and a registry, as the API tells it.
fn transfer_error(error: &TransferError) -> ApiError {
    failed(error, ApiErrorKind::Unavailable)
}

/// The failure to take in what the client sent: what is wrong with it is the client's fault.
fn archive_error(error: &TransferError) -> ApiError {
    failed(error, ApiErrorKind::Invalid)
}

fn failed(error: &TransferError, corrupt: ApiErrorKind) -> ApiError {
    let kind = match error.kind() {
        ErrorKind::NotFound => ApiErrorKind::NotFound,
        ErrorKind::Unauthorized => ApiErrorKind::Unauthorized,
        ErrorKind::Denied => ApiErrorKind::Forbidden,
        ErrorKind::Conflict => ApiErrorKind::Conflict,
        ErrorKind::Invalid => ApiErrorKind::Invalid,
        ErrorKind::Corrupt => corrupt,
        ErrorKind::Unavailable => ApiErrorKind::Unavailable,
        ErrorKind::Canceled | ErrorKind::Internal => ApiErrorKind::Internal,
    };
    ApiError::new(kind, chain(error))
}

/// Takes news from work that must not wait.
#[derive(Clone)]
struct Feed(mpsc::Sender<TransferNews>);

impl Feed {
    fn say(&self, news: TransferNews) {
        // A client thousands of lines behind misses some; the outcome it gets.
        let _ = self.0.try_send(news);
    }

    fn loading(&self, event: &LoadEvent) {
        match event {
            LoadEvent::Layer { diff_id, current, total } => self.say(TransferNews::Progress {
                id: diff_id.short().to_owned(),
                action: "Loading layer".to_owned(),
                current: *current,
                total: *total,
            }),
            LoadEvent::Renamed { .. } => {
                if let Some(line) = event.docker_line() {
                    self.say(TransferNews::Text(format!("{line}\n")));
                }
            }
            // The door says these, once all is done.
            LoadEvent::Loaded { .. } | LoadEvent::LoadedUnnamed { .. } => {}
        }
    }

    fn layer(&self, event: &TransferEvent) {
        let id = event.id().to_owned();
        let text = match event.status {
            TransferStatus::Waiting => "Pulling fs layer".to_owned(),
            _ => event.docker_status(),
        };
        self.say(match event.current() {
            Some(current) => TransferNews::Progress { id, action: text, current, total: event.total },
            None => TransferNews::Status { id: Some(id), text },
        });
    }
}

/// A feed, and the future that passes its news on until the last feed is gone.
fn feed(sink: TransferSink) -> (Feed, impl Future<Output = ()>) {
    let (sender, mut news) = mpsc::channel(NEWS_DEPTH);
    let forward = async move {
        while let Some(one) = news.recv().await {
            if sink.send(one).await.is_err() {
                return;
            }
        }
    };
    (Feed(sender), forward)
}

/// Writes to the client, at its speed.
struct ChunkWriter(SaveSink);

impl std::io::Write for ChunkWriter {
    fn write(&mut self, data: &[u8]) -> std::io::Result<usize> {
        match self.0.blocking_send(Bytes::copy_from_slice(data)) {
            Ok(()) => Ok(data.len()),
            Err(_) => Err(std::io::ErrorKind::BrokenPipe.into()),
        }
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}
