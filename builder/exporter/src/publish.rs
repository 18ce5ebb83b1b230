//! Pushing: layers while others are still compressed, manifests when all outputs of the build are made.

use std::sync::{Arc, Mutex, PoisonError};

use futures::{StreamExt, TryStreamExt};
use lapstrake_builder_progress::{StatusHandle, VertexHandle};
use lapstrake_layerstore_oci::{Descriptor, Reference};
use lapstrake_layerstore_registry::{Item, ProgressFn, PushSource, RegistryClient, RegistryError};
use lapstrake_layerstore_store::{ImageName, Stores};
use lapstrake_layerstore_transfer::{blob_lenders, lenders};
use tokio::{sync::mpsc, task::JoinSet};
use tokio_util::sync::CancellationToken;

use crate::{Export, ExportError, Exported, Exporter, written::Written};

/// Blobs that may wait to be uploaded. More, and who makes them is not told that they are: they go when all are made.
const WAITING: usize = 1024;
/// Uploads at once, to each registry.
const AT_ONCE: usize = 4;

/// An image that is made, and not yet pushed. Dropping it ends its uploads.
pub(crate) struct Publishing {
    written: Arc<Written>,
    uploads: Uploads,
    names: Vec<Reference>,
}

impl Publishing {
    pub(crate) fn new(written: Arc<Written>, uploads: Uploads, names: Vec<Reference>) -> Self {
        Self { written, uploads, names }
    }
}

impl std::fmt::Debug for Publishing {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Publishing").field("names", &self.names).finish_non_exhaustive()
    }
}

/// Uploads of layers that run while others are made.
pub(crate) struct Uploads {
    targets: Vec<(Reference, RegistryClient)>,
    /// One task, which ends when nobody is left to tell of blobs.
    running: JoinSet<Result<(), (Reference, RegistryError)>>,
}

/// Tells of blobs that can be uploaded.
pub(crate) struct Ready(Option<mpsc::Sender<Descriptor>>);

impl Ready {
    pub(crate) fn tell(&self, blob: &Descriptor) {
        if let Some(sender) = &self.0 {
            // What is not told of, or too late, goes with the manifests.
            let _ = sender.try_send(blob.clone());
        }
    }
}

impl Uploads {
    /// Begins to upload what is told of, to all targets.
    pub(crate) fn begin(stores: &Stores, targets: Vec<(Reference, RegistryClient)>) -> (Self, Ready) {
        let mut running = JoinSet::new();
        if targets.is_empty() {
            return (Self { targets, running }, Ready(None));
        }
        let (sender, receiver) = mpsc::channel(WAITING);
        let (to, content) = (targets.clone(), Arc::clone(&stores.content));
        running.spawn(async move {
            let blobs = futures::stream::unfold(receiver, async |mut receiver| {
                receiver.recv().await.map(|blob: Descriptor| (blob, receiver))
            });
            let at_once = AT_ONCE * to.len();
            let jobs = blobs
                .flat_map(|blob| futures::stream::iter(to.clone()).map(move |target| (target, blob.clone())));
            jobs.map(Ok)
                .try_for_each_concurrent(at_once, |((name, client), blob)| {
                    let content = Arc::clone(&content);
                    async move {
                        let pushed = client.push_blob(&name, &blob, &content, blob_lenders(&blob)).await;
                        pushed.map_err(|error| (name, error))
                    }
                })
                .await
        });
        (Self { targets, running }, Ready(Some(sender)))
    }
}

impl Exporter {
    /// Does what is to be done when all outputs of the build are made: what others see.
    ///
    /// Cancelled by `cancel` or by dropping the future; a registry then has at most blobs that nothing names.
    pub async fn publish(
        &self,
        export: Export,
        vertex: &VertexHandle,
        cancel: &CancellationToken,
    ) -> Result<Exported, ExportError> {
        let Some(publishing) = export.publishing else { return Ok(export.exported) };
        let work = async {
            let Publishing { written, mut uploads, .. } = publishing;
            let layers = vertex.part("pushing layers", "", 0);
            if let Some(result) = uploads.running.join_next().await {
                let result = result.unwrap_or_else(|panic| std::panic::resume_unwind(panic.into_panic()));
                result.map_err(|(name, error)| failed(&name, error.into()))?;
            }
            let mut layers = Some(layers);
            for (name, client) in &uploads.targets {
                let pushed = self.push(&written, name, client, layers.take(), vertex).await;
                pushed.map_err(|error| failed(name, error))?;
            }
            self.remember(&export.exported, &written, &uploads.targets).await
        };
        tokio::select! {
            result = work => result?,
            () = cancel.cancelled() => return Err(ExportError::Canceled),
        }
        Ok(export.exported)
    }

    async fn push(
        &self,
        written: &Arc<Written>,
        name: &Reference,
        client: &RegistryClient,
        layers: Option<StatusHandle>,
        vertex: &VertexHandle,
    ) -> Result<(), ExportError> {
        let (stores, held, to) = (self.stores.clone(), Arc::clone(written), name.clone());
        let mounts = ExportError::blocking(move || Ok(lenders(&stores, held.manifests(), &to)?)).await?;
        let root = Descriptor { annotations: Default::default(), ..written.root.clone() };
        let shown = match name.tag() {
            Some(_) => format!("{name}@{}", root.digest),
            None => name.to_string(),
        };
        let source = PushSource { content: Arc::clone(&self.stores.content), root, mounts };
        let layers = layers.unwrap_or_else(|| vertex.part("pushing layers", "", 0));
        // What runs now: the layers first, then the manifests.
        let part = Arc::new(Mutex::new(Some((layers, true))));
        let (told, handle) = (Arc::clone(&part), vertex.clone());
        let manifests = format!("pushing manifest for {shown}");
        let progress: ProgressFn = Arc::new(move |event| {
            let mut part = told.lock().unwrap_or_else(PoisonError::into_inner);
            if event.item == Item::Manifest && part.as_ref().is_some_and(|(_, layers)| *layers) {
                *part = None;
                *part = Some((handle.part(manifests.clone(), "", 0), false));
            }
        });
        let pushed = match name.tag() {
            Some(_) => client.push(name, &source, &progress).await,
            None => client.push_by_digest(name, &source, &progress).await,
        };
        *part.lock().unwrap_or_else(PoisonError::into_inner) = None;
        pushed?;
        Ok(())
    }

    /// Puts the names that the registries now have on the image, as `docker push` does: they show where it is, and who may lend its layers.
    async fn remember(
        &self,
        exported: &Exported,
        written: &Arc<Written>,
        targets: &[(Reference, RegistryClient)],
    ) -> Result<(), ExportError> {
        let root = written.root.clone();
        let id = written.representative().0.id.clone();
        let (stores, is_stored) = (self.stores.clone(), exported.image.is_some());
        let names: Vec<Reference> = targets.iter().map(|(name, _)| name.clone()).collect();
        ExportError::blocking(move || {
            if !is_stored || stores.images.get(&id)?.is_none() {
                return Ok(());
            }
            for name in names {
                let reference = name.trimmed().with_digest(root.digest.clone());
                stores.images.tag(&id, &ImageName { reference, target: Some(root.clone()) })?;
            }
            Ok(())
        })
        .await
    }
}

fn failed(name: &Reference, source: ExportError) -> ExportError {
    ExportError::Push { name: name.to_string(), source: Box::new(source) }
}

#[cfg(test)]
mod tests {
    use std::{fs, sync::Condvar, time::Duration};

    use lapstrake_graphdriver_adapter::{Adapter, DriverKind};
    use lapstrake_layerstore_conformance::registry::{Fake, Shelf};
    use lapstrake_layerstore_registry::{ClientOptions, RegistryConfig};
    use lapstrake_layerstore_store::{LocalStore, Tree};
    use lapstrake_layerstore_transfer::{BlobOptions, layers, make_blobs};

    use super::*;

    /// More than are compressed at once on any machine.
    const LAYERS: usize = 20;

    /// Something that happens once.
    #[derive(Default)]
    struct Happening(Mutex<bool>, Condvar);

    impl Happening {
        fn tell(&self) {
            *self.0.lock().unwrap() = true;
            self.1.notify_all();
        }

        fn wait(&self) {
            let told = self.0.lock().unwrap();
            let (told, _) = self.1.wait_timeout_while(told, Duration::from_secs(60), |told| !*told).unwrap();
            assert!(*told, "it did not happen");
        }
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 4)]
    async fn a_layer_is_uploaded_while_the_next_is_compressed() {
        let directory = tempfile::tempdir().unwrap();
        let local = LocalStore::open(directory.path()).unwrap();
        let driver = DriverKind::Overlay2.open(directory.path()).unwrap();
        let stores = local.stores(Arc::new(Adapter::new(driver, local.records.clone())));
        let mut tree = Tree::empty();
        for number in 0..LAYERS {
            let draft = stores.begin(&tree).unwrap();
            fs::write(draft.open().unwrap().path().join("number"), number.to_string()).unwrap();
            tree = draft.commit().unwrap();
        }
        // The registry does not answer to the first upload before all layers are compressed, and no thread compresses a second layer before
        // that upload has begun: either waiting for the other would never end.
        let (begun, compressed) = (Arc::new(Happening::default()), Arc::new(Happening::default()));
        let shelf = Arc::new(Shelf::default());
        let (seen_begun, hold, serving) = (Arc::clone(&begun), Arc::clone(&compressed), Arc::clone(&shelf));
        let registry = Fake::start(move |seen| {
            if seen.method == "POST" && seen.nth == 0 {
                seen_begun.tell();
                hold.wait();
            }
            serving.serve(seen).into()
        })
        .await;
        let client = RegistryClient::new(RegistryConfig::default(), ClientOptions::default());
        let (mut uploads, ready) = Uploads::begin(&stores, vec![(registry.reference(), client)]);
        let blobs = tokio::task::spawn_blocking(move || {
            let (all, lease) = (layers(&stores, &tree).unwrap(), stores.leases.create());
            let told = |blob: &Descriptor| {
                ready.tell(blob);
                begun.wait();
            };
            let options = BlobOptions::default();
            let blobs =
                make_blobs(&stores, &all, &options, &lease, &CancellationToken::new(), &told).unwrap();
            compressed.tell();
            (blobs, lease)
        });
        let (blobs, _lease) = blobs.await.unwrap();
        uploads.running.join_next().await.unwrap().unwrap().map_err(|(_, error)| error).unwrap();
        assert_eq!(blobs.len(), LAYERS);
        assert!(blobs.iter().all(|blob| shelf.blob(&blob.digest).is_some()));
    }
}
