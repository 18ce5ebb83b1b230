//! What the tests share: sources over a local store and overlay2 in a temporary directory, and somebody who waits for them.

use std::{
    collections::HashMap,
    path::{Path, PathBuf},
    sync::Arc,
};

use lapstrake_builder_cache::BuildCache;
use lapstrake_builder_llb::pb;
use lapstrake_builder_progress::{Emit, Event, VertexHandle, VertexState};
use lapstrake_builder_source::{
    LocalProvider, Source, SourceContext, SourceError, SourceLimits, Sources, SourcesOptions,
};
use lapstrake_graphdriver_adapter::{Adapter, Overlay2};
use lapstrake_layerstore_oci::Digest;
use lapstrake_layerstore_registry::{ClientOptions, RegistryClient, RegistryConfig};
use lapstrake_layerstore_store::{Collector, LocalStore, SnapshotMount, Stores, Tree};
use lapstrake_session::{SessionId, Sessions};
use parking_lot::Mutex;
use tokio_util::sync::CancellationToken;

pub(crate) mod git;
pub(crate) mod image;
pub(crate) mod server;

/// Keeps what is reported.
#[derive(Default)]
pub(crate) struct Recorder(Mutex<Vec<Event>>);

impl Emit for Recorder {
    fn emit(&self, event: &Event) {
        self.0.lock().push(event.clone());
    }
}

impl Recorder {
    /// Ids of the parts that were reported, each once, in order of first appearance.
    pub(crate) fn parts(&self) -> Vec<String> {
        let mut ids: Vec<String> = Vec::new();
        for event in self.0.lock().iter() {
            if let Event::Status(status) = event
                && !ids.contains(&status.id)
            {
                ids.push(status.id.clone());
            }
        }
        ids
    }

    /// All that was reported, as text.
    pub(crate) fn everything(&self) -> String {
        let mut text = String::new();
        for event in self.0.lock().iter() {
            match event {
                Event::Log(log) => text.push_str(&String::from_utf8_lossy(&log.data)),
                other => text.push_str(&format!("{other:?}")),
            }
            text.push('\n');
        }
        text
    }

    /// The last that was said of a part: current, total, and whether it ended.
    pub(crate) fn last(&self, id: &str) -> Option<(u64, u64, bool)> {
        self.0.lock().iter().rev().find_map(|event| match event {
            Event::Status(status) if status.id == id => {
                Some((status.current, status.total, status.completed.is_some()))
            }
            _ => None,
        })
    }
}

pub(crate) struct Bench {
    pub local: LocalStore,
    pub stores: Stores,
    pub cache: Arc<BuildCache>,
    pub sources: Sources,
    pub sessions: Sessions,
    pub recorder: Arc<Recorder>,
    pub cancel: CancellationToken,
    pub dir: tempfile::TempDir,
}

impl Bench {
    pub(crate) fn new() -> Bench {
        Bench::with(SourceLimits::default(), Sessions::new())
    }

    pub(crate) fn with(limits: SourceLimits, sessions: Sessions) -> Bench {
        let dir = tempfile::tempdir().unwrap();
        let local = LocalStore::open(dir.path().join("store")).unwrap();
        let driver = Overlay2::open(&dir.path().join("store")).unwrap();
        let snapshots = Arc::new(Adapter::new(driver, local.records.clone()));
        let stores = local.stores(snapshots);
        let cache = BuildCache::open(local.metadata.clone(), stores.clone()).unwrap();
        let sources = Bench::sources(&stores, &cache, &sessions, dir.path(), limits);
        Bench {
            local,
            stores,
            cache,
            sources,
            sessions,
            recorder: Arc::default(),
            cancel: CancellationToken::new(),
            dir,
        }
    }

    fn sources(
        stores: &Stores,
        cache: &Arc<BuildCache>,
        sessions: &Sessions,
        dir: &Path,
        limits: SourceLimits,
    ) -> Sources {
        Sources::new(SourcesOptions {
            stores: stores.clone(),
            cache: Arc::clone(cache),
            sessions: sessions.clone(),
            registry: RegistryClient::new(RegistryConfig::default(), ClientOptions::default()),
            root: dir.join("git"),
            limits,
        })
    }

    /// New sources over the same stores.
    pub(crate) fn restart(&self, limits: SourceLimits) -> Sources {
        Bench::sources(&self.stores, &self.cache, &self.sessions, self.dir.path(), limits)
    }

    /// The directory of a tree that is one.
    pub(crate) fn directory(&self, tree: &Tree) -> PathBuf {
        match self.stores.mount(tree).unwrap().unwrap() {
            SnapshotMount::Bind { source, .. } => source,
            SnapshotMount::Overlay { lower, .. } => lower[0].clone(),
        }
    }

    /// Removes what only the cache's entries, images and leases do not hold.
    pub(crate) fn collect(&self) {
        let collector = Collector::new(self.stores.clone(), vec![self.cache.clone()]);
        collector.collect().unwrap();
    }

    pub(crate) fn context(&self) -> SourceContext {
        let state = VertexState::pending(Digest::sha256_of("vertex"), "vertex", Vec::new());
        SourceContext {
            builds: Vec::new(),
            sessions: Vec::new(),
            credentials: Vec::new(),
            locals: HashMap::new(),
            vertex: VertexHandle::announce(self.recorder.clone(), state),
            cancel: self.cancel.clone(),
        }
    }

    pub(crate) fn context_of(&self, session: &str) -> SourceContext {
        SourceContext { sessions: vec![SessionId::parse(session).unwrap()], ..self.context() }
    }

    pub(crate) fn context_with(&self, id: &str, provider: LocalProvider) -> SourceContext {
        SourceContext { locals: HashMap::from([(id.to_owned(), provider)]), ..self.context() }
    }

    pub(crate) fn open(
        &self,
        identifier: &str,
        attrs: &[(&str, &str)],
    ) -> Result<Arc<dyn Source>, SourceError> {
        self.sources.open(&op(identifier, attrs), None)
    }

    /// Pins and fetches.
    pub(crate) async fn get(
        &self,
        cx: &SourceContext,
        identifier: &str,
        attrs: &[(&str, &str)],
    ) -> Result<(Digest, Tree), SourceError> {
        let source = self.open(identifier, attrs)?;
        let digest = source.pin(cx).await?;
        Ok((digest, source.fetch(cx).await?))
    }

    /// Everything in a tree: path, and `d`, `f:content`, `l:target`, or `?`.
    pub(crate) fn list(&self, tree: &Tree) -> Vec<(String, String)> {
        let Some(open) = self.stores.open(tree).unwrap() else { return Vec::new() };
        let mut found = Vec::new();
        let root = open.path();
        let mut waiting: Vec<PathBuf> = vec![PathBuf::new()];
        while let Some(dir) = waiting.pop() {
            for entry in std::fs::read_dir(root.join(&dir)).unwrap() {
                let entry = entry.unwrap();
                let path = dir.join(entry.file_name());
                let kind = entry.file_type().unwrap();
                let what = if kind.is_dir() {
                    waiting.push(path.clone());
                    "d".to_owned()
                } else if kind.is_symlink() {
                    format!("l:{}", std::fs::read_link(entry.path()).unwrap().display())
                } else if kind.is_file() {
                    format!("f:{}", String::from_utf8_lossy(&std::fs::read(entry.path()).unwrap()))
                } else {
                    "?".to_owned()
                };
                found.push((path.to_str().unwrap().to_owned(), what));
            }
        }
        found.sort();
        found
    }

    pub(crate) fn names(&self, tree: &Tree) -> Vec<String> {
        self.list(tree).into_iter().map(|(path, _)| path).collect()
    }

    pub(crate) fn read(&self, tree: &Tree, path: &str) -> Vec<u8> {
        std::fs::read(self.stores.open(tree).unwrap().unwrap().path().join(path)).unwrap()
    }

    pub(crate) fn metadata(&self, tree: &Tree, path: &str) -> std::fs::Metadata {
        let open = self.stores.open(tree).unwrap().unwrap();
        std::fs::symlink_metadata(open.path().join(path)).unwrap()
    }
}

pub(crate) fn op(identifier: &str, attrs: &[(&str, &str)]) -> pb::SourceOp {
    pb::SourceOp {
        identifier: identifier.to_owned(),
        attrs: attrs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect(),
    }
}

pub(crate) fn strings(texts: &[&str]) -> Vec<String> {
    texts.iter().map(|text| (*text).to_owned()).collect()
}
