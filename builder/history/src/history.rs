//! The history of one store.
//!
//! # What a crash leaves
//!
//! A row is written when a build begins, and again when it has ended and its log is on disk under its name. So `kill -9` leaves a row
//! that says "running" (the next start calls it interrupted), a half-written log without its name, or a log whose row does not know it
//! (both removed by the next start). Rows go before their logs; one that a power cut brings back says
//! that its log is lost.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::{self, DirBuilder, File},
    io,
    os::unix::fs::DirBuilderExt as _,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, SystemTime},
};

use lapstrake_builder_progress::{Progress, StatusResponse, Subscription};
use lapstrake_layerstore_store::{Metadata, StoreError, random_id};
use parking_lot::Mutex;
use prost::Message as _;
use tokio::{
    runtime::Handle,
    sync::{broadcast, watch},
};

use crate::{
    Attachment, BuildLog, BuildNotes, BuildRecord, BuildStatus, BuildSummary, HistoryError, LogRecord,
    OutputRecord, Recording, ResultRecord, VertexRecord, documents, log::LogWriter, record::Tally, rows,
};

/// Bytes of unpacked vertices of one build: 100,000 of some hundred bytes.
const VERTEX_BYTES: u64 = 256 << 20;
/// Changes that a listener may be behind.
const NEWS: usize = 1024;
/// Longest id, in characters.
const ID_CHARS: usize = 64;

/// How much history is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Builds that are kept whatever their age (`[history] maxEntries`).
    pub entries: usize,
    /// Further builds are kept until they are this old (`[history] maxAge`) …
    pub age: Duration,
    /// … and no more builds than this in all.
    pub most: usize,
    /// Bytes of logs on disk in all; the newest build's is kept whatever its size.
    pub log_bytes: u64,
}

impl Default for Limits {
    /// BuildKit's 50 builds and 48 hours; 1000 builds and 1 GiB at most.
    fn default() -> Self {
        Self { entries: 50, age: Duration::from_secs(48 * 60 * 60), most: 1000, log_bytes: 1 << 30 }
    }
}

/// A build that begins, as it is recorded.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Building {
    /// What its client calls it; kept as its id where that can be.
    pub id: String,
    /// What it is called in lists.
    pub name: String,
    /// See [`BuildSummary::frontend`].
    pub frontend: String,
    /// The Dockerfile's path.
    pub dockerfile: String,
    /// The stage that was asked for.
    pub target: Option<String>,
    /// Where its files come from, without credentials.
    pub context: Option<String>,
    /// The platforms that were asked for.
    pub platforms: Vec<String>,
    /// Names of build-args that were given.
    pub build_args: Vec<String>,
    /// What is to be left behind.
    pub output: String,
    /// Names of the image.
    pub names: Vec<String>,
    /// See [`BuildSummary::options`].
    pub options: BTreeMap<String, String>,
    /// See [`BuildSummary::outputs`].
    pub outputs: Vec<OutputRecord>,
}

/// How a build ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// Well.
    Completed {
        /// The image that was made.
        image: Option<String>,
        /// See [`BuildSummary::response`].
        response: BTreeMap<String, String>,
        /// See [`BuildSummary::results`].
        results: BTreeMap<u32, ResultRecord>,
    },
    /// With an error.
    Failed {
        /// The whole message.
        error: String,
        /// See [`BuildSummary::failure_code`].
        code: i32,
    },
    /// Nobody wanted it any more.
    Canceled,
}

/// The builds of one store. Cheap to clone.
#[derive(Clone)]
pub struct History(pub(crate) Arc<Inner>);

/// Something happened to a build.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum News {
    /// It began.
    Begun(String),
    /// It was written down, or its record was changed.
    Recorded(String),
    /// It was forgotten.
    Forgotten(String),
}

pub(crate) struct Inner {
    pub(crate) metadata: Metadata,
    pub(crate) directory: PathBuf,
    limits: Limits,
    pub(crate) state: Mutex<State>,
    /// Who listens is told what happens; `None` when nothing will any more.
    pub(crate) news: Mutex<Option<broadcast::Sender<News>>>,
    /// Changes when a build has been written down.
    written: watch::Sender<u64>,
    /// Held by whoever writes a log: one at a time, as packing is work for a processor.
    writing: Mutex<()>,
}

#[derive(Default)]
pub(crate) struct State {
    /// Ids of builds that are written down.
    pub(crate) known: BTreeSet<String>,
    /// Builds that run, or are being written down.
    pub(crate) live: BTreeMap<String, Live>,
}

pub(crate) struct Live {
    summary: BuildSummary,
    /// Documents that are to be written down with it.
    pub(crate) attachments: Vec<Attachment>,
    notes: Arc<BuildNotes>,
    /// From its first event on.
    events: Subscription,
    has_ended: bool,
    /// Whether it has ended and what its steps were made of is not written down yet.
    owes_recipes: bool,
}

impl History {
    /// Opens the history: tables in `metadata`, logs in `directory`. Removes what a crash left half-made. Blocks.
    pub fn open(
        metadata: Metadata,
        directory: impl Into<PathBuf>,
        limits: Limits,
    ) -> Result<Self, HistoryError> {
        let directory = directory.into();
        metadata.migrate("history", crate::schema::STEPS)?;
        // What processes print may be secret.
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&directory)
            .map_err(HistoryError::io("create", &directory))?;
        let mut known = BTreeSet::new();
        let mut logs = BTreeSet::new();
        for row in rows::builds(&metadata)? {
            let Ok(mut summary) = serde_json::from_str::<BuildSummary>(&row.summary) else {
                tracing::warn!(build = row.id, "a build's record cannot be read; it is forgotten");
                rows::drop_builds(&metadata, &[row.id])?;
                continue;
            };
            let has_log = summary.log_bytes.is_some() && log_path(&directory, &row.id).is_file();
            let was_running = summary.status == BuildStatus::Running;
            if was_running || has_log != summary.log_bytes.is_some() {
                summary.status = if was_running { BuildStatus::Interrupted } else { summary.status };
                summary.log_bytes = None;
                let vertices = rows::build(&metadata, &row.id)?.and_then(|(_, vertices)| vertices);
                metadata.write_lazily(|txn| {
                    rows::put_build(txn, &summary, vertices.as_deref())
                        .map_err(StoreError::metadata("note that a build was interrupted"))
                })?;
            } else if has_log {
                logs.insert(log_path(&directory, &row.id));
            }
            known.insert(row.id);
        }
        for entry in fs::read_dir(&directory).map_err(HistoryError::io("list", &directory))? {
            let path = entry.map_err(HistoryError::io("list", &directory))?.path();
            if !logs.contains(&path) {
                fs::remove_file(&path).map_err(HistoryError::io("remove", path))?;
            }
        }
        Ok(Self(Arc::new(Inner {
            metadata,
            directory,
            limits,
            state: Mutex::new(State { known, live: BTreeMap::new() }),
            news: Mutex::new(Some(broadcast::Sender::new(NEWS))),
            written: watch::Sender::new(0),
            writing: Mutex::default(),
        })))
    }

    /// A build begins. Called within a tokio runtime.
    pub fn begin(&self, building: Building, progress: &Progress) -> Recording {
        let events = progress.subscribe();
        let notes = BuildNotes::new(self.0.metadata.clone());
        let mut state = self.0.state.lock();
        let id = state.free_id(building.id);
        let summary = BuildSummary {
            id: id.clone(),
            name: building.name,
            status: BuildStatus::Running,
            created: SystemTime::now(),
            completed: None,
            error: None,
            frontend: building.frontend,
            dockerfile: building.dockerfile,
            target: building.target,
            context: building.context,
            platforms: building.platforms,
            build_args: building.build_args,
            output: building.output,
            names: building.names,
            image: None,
            total_steps: 0,
            completed_steps: 0,
            cached_steps: 0,
            warnings: 0,
            log_bytes: None,
            options: building.options,
            outputs: building.outputs,
            response: BTreeMap::new(),
            results: BTreeMap::new(),
            failure_code: 0,
            log: None,
            attachments: Vec::new(),
            pinned: false,
            generation: 0,
        };
        let live = Live {
            summary: summary.clone(),
            attachments: Vec::new(),
            notes: Arc::clone(&notes),
            events,
            has_ended: false,
            owes_recipes: false,
        };
        state.live.insert(id.clone(), live);
        // Under the lock, so that whoever listens and then looks misses nothing.
        self.0.tell(News::Begun(id.clone()));
        drop(state);
        let runtime = Handle::current();
        let inner = Arc::clone(&self.0);
        runtime.spawn_blocking(move || inner.note_beginning(&summary));
        Recording::new(self.clone(), id, notes, runtime)
    }

    /// Waits until all builds that have ended are written down.
    pub async fn settle(&self) {
        self.wait_while(|live| live.has_ended).await;
    }

    /// Waits until [`BuildNotes::explain`] knows of the steps of all builds that have ended. Never long: nothing but rows is waited for.
    pub async fn settle_recipes(&self) {
        self.wait_while(|live| live.owes_recipes).await;
    }

    pub(crate) async fn wait_while(&self, is_awaited: impl Fn(&Live) -> bool + Send) {
        let mut written = self.0.written.subscribe();
        // Whatever changes after the look at the builds also changes what is waited for.
        while self.0.state.lock().live.values().any(&is_awaited) {
            if written.changed().await.is_err() {
                return;
            }
        }
    }

    /// All builds, newest first. Blocks.
    pub fn builds(&self) -> Result<Vec<BuildSummary>, HistoryError> {
        let mut all: BTreeMap<String, BuildSummary> = BTreeMap::new();
        for row in rows::builds(&self.0.metadata)? {
            all.insert(row.id.clone(), read_summary(&row)?);
        }
        for (id, live) in &self.0.state.lock().live {
            all.insert(id.clone(), live.summary.clone());
        }
        let mut all: Vec<_> = all.into_values().collect();
        all.sort_by(|a, b| (b.created, &a.id).cmp(&(a.created, &b.id)));
        Ok(all)
    }

    /// One build, by its id or the beginning of it. Of one that runs, what is known so far. Blocks.
    pub fn build(&self, id: &str) -> Result<BuildRecord, HistoryError> {
        let id = self.find(id)?;
        if let Some((mut summary, notes, mut events)) = self.live(&id)? {
            let mut tally = Tally::default();
            // Nothing is waited for: a future that is not ready ends the loop.
            while let Some(Ok(Some(response))) = futures::FutureExt::now_or_never(events.next()) {
                tally.take(response);
            }
            let vertices = tally.finish(&mut summary, |vertex| notes.reasons(vertex));
            return Ok(BuildRecord { summary, vertices });
        }
        let (row, vertices) = rows::build(&self.0.metadata, &id)?
            .ok_or_else(|| HistoryError::NoSuchBuild { id: id.clone() })?;
        let vertices = vertices.map_or(Ok(Vec::new()), |bytes| unpack(&bytes));
        let vertices = vertices.map_err(|source| HistoryError::Damaged { id: id.clone(), source })?;
        Ok(BuildRecord { summary: read_summary(&row)?, vertices })
    }

    /// A build's log from its beginning; of one that runs, to its end if `is_followed`. Blocks.
    pub fn log(&self, id: &str, is_followed: bool) -> Result<BuildLog, HistoryError> {
        let id = self.find(id)?;
        if let Some((_, _, events)) = self.live(&id)? {
            return Ok(BuildLog::live(id, events, is_followed));
        }
        let path = log_path(&self.0.directory, &id);
        let open = || BuildLog::stored(id.clone(), File::open(&path)?);
        open().map_err(|source| match source.kind() {
            io::ErrorKind::NotFound => HistoryError::NoLog { id: id.clone() },
            _ => HistoryError::Io { doing: "open", path: path.clone(), source },
        })
    }

    /// Forgets a build, by its id or the beginning of it; its id. Blocks.
    ///
    /// Errors: [`HistoryError::Running`]; what is not there is [`HistoryError::NoSuchBuild`].
    pub fn remove(&self, id: &str) -> Result<String, HistoryError> {
        let id = self.find(id)?;
        if self.0.state.lock().live.contains_key(&id) {
            return Err(HistoryError::Running { id });
        }
        self.0.forget(std::slice::from_ref(&id))?;
        Ok(id)
    }

    /// Forgets all builds that have ended; their ids. Blocks.
    pub fn clear(&self) -> Result<Vec<String>, HistoryError> {
        let ids: Vec<String> = self.0.state.lock().known.iter().cloned().collect();
        self.0.forget(&ids)?;
        Ok(ids)
    }

    pub(crate) fn find(&self, asked: &str) -> Result<String, HistoryError> {
        let state = self.0.state.lock();
        if state.is_taken(asked) {
            return Ok(asked.to_owned());
        }
        let mut found = state.known.iter().chain(state.live.keys()).filter(|id| id.starts_with(asked));
        match (found.next(), found.next()) {
            (Some(id), None) if !asked.is_empty() => Ok(id.clone()),
            (Some(_), Some(_)) if !asked.is_empty() => Err(HistoryError::Ambiguous { id: asked.to_owned() }),
            _ => Err(HistoryError::NoSuchBuild { id: asked.to_owned() }),
        }
    }

    #[allow(clippy::type_complexity)]
    fn live(&self, id: &str) -> Result<Option<(BuildSummary, Arc<BuildNotes>, Subscription)>, HistoryError> {
        let state = self.0.state.lock();
        let Some(live) = state.live.get(id) else { return Ok(None) };
        let events = live.events.again();
        Ok(Some((live.summary.clone(), Arc::clone(&live.notes), events)))
    }
}

impl std::fmt::Debug for History {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("History").field("directory", &self.0.directory).finish_non_exhaustive()
    }
}

impl State {
    fn is_taken(&self, id: &str) -> bool {
        self.known.contains(id) || self.live.contains_key(id)
    }

    /// The client's name for the build, if that can be the name of a file and no other build has it; else a random one.
    fn free_id(&self, wanted: String) -> String {
        let is_plain = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
        if (1..=ID_CHARS).contains(&wanted.len()) && wanted.chars().all(is_plain) && !self.is_taken(&wanted) {
            return wanted;
        }
        random_id()
    }
}

pub(crate) fn log_path(directory: &Path, id: &str) -> PathBuf {
    directory.join(format!("{id}.zst"))
}

fn read_summary(row: &rows::BuildRow) -> Result<BuildSummary, HistoryError> {
    let damaged =
        |error: serde_json::Error| HistoryError::Damaged { id: row.id.clone(), source: error.into() };
    let summary: BuildSummary = serde_json::from_str(&row.summary).map_err(damaged)?;
    Ok(BuildSummary { pinned: row.pinned, generation: row.generation, ..summary })
}

fn pack(vertices: &[VertexRecord]) -> io::Result<Vec<u8>> {
    // Its tables are as large as what it packs.
    zstd::bulk::compress(&serde_json::to_vec(vertices)?, 3)
}

fn unpack(bytes: &[u8]) -> io::Result<Vec<VertexRecord>> {
    let decoder = zstd::stream::read::Decoder::new(bytes)?;
    Ok(serde_json::from_reader(io::BufReader::new(io::Read::take(decoder, VERTEX_BYTES)))?)
}

impl Inner {
    /// Tells who listens, if anybody does.
    pub(crate) fn tell(&self, news: News) {
        if let Some(sender) = &*self.news.lock() {
            let _ = sender.send(news);
        }
    }

    /// So that a build that the daemon does not survive is not forgotten.
    fn note_beginning(&self, summary: &BuildSummary) {
        let noted = self.metadata.write_lazily(|txn| {
            // It may have ended before this thread got its turn, and been written down or even forgotten.
            if !self.state.lock().live.contains_key(&summary.id) {
                return Ok(());
            }
            rows::begin_build(txn, summary).map_err(StoreError::metadata("note that a build began"))
        });
        if let Err(error) = noted {
            tracing::warn!(%error, build = summary.id, "a build's beginning is not recorded");
        }
    }

    pub(crate) fn mark_ended(&self, id: &str, outcome: Outcome) {
        let mut state = self.state.lock();
        let Some(live) = state.live.get_mut(id) else { return };
        live.has_ended = true;
        live.owes_recipes = true;
        let summary = &mut live.summary;
        summary.completed = Some(SystemTime::now());
        match outcome {
            Outcome::Completed { image, response, results } => {
                summary.status = BuildStatus::Completed;
                summary.image = image;
                summary.response = response;
                summary.results = results;
            }
            Outcome::Failed { error, code } => {
                summary.status = BuildStatus::Error;
                summary.error = Some(error);
                summary.failure_code = code;
            }
            Outcome::Canceled => summary.status = BuildStatus::Canceled,
        }
    }

    /// Writes what later builds compare with, then the log, then the row; then drops what is over the limits.
    pub(crate) fn write_down(&self, id: &str, notes: &BuildNotes, runtime: &Handle) {
        let recipes = notes.take_recipes();
        if !recipes.is_empty() {
            let noted = self.metadata.write_lazily(|txn| {
                rows::put_recipes(txn, notes.project(), &recipes)
                    .map_err(StoreError::metadata("note what a build's steps were made of"))
            });
            if let Err(error) = noted {
                tracing::warn!(%error, build = id, "what the steps of a build were made of is not recorded");
            }
        }
        drop(recipes);
        if let Some(live) = self.state.lock().live.get_mut(id) {
            live.owes_recipes = false;
        }
        self.written.send_modify(|count| *count += 1);
        let ended =
            self.state.lock().live.get_mut(id).map(|live| {
                (live.summary.clone(), live.events.again(), std::mem::take(&mut live.attachments))
            });
        let Some((mut summary, events, attachments)) = ended else { return };
        let mut tally = Tally::default();
        let logged = self.write_log(id, events, &mut tally, runtime);
        match logged {
            Ok((bytes, log)) => {
                summary.log_bytes = Some(bytes);
                summary.log = Some(log);
            }
            // The build is what it is; a full disk takes its log, not its record.
            Err(error) => tracing::warn!(%error, build = id, "a build's log is not kept"),
        }
        let vertices = tally.finish(&mut summary, |vertex| notes.reasons(vertex));
        let vertices = pack(&vertices).ok();
        let documents = documents::pack(&mut summary, attachments);
        let noted = self.metadata.write_lazily(|txn| {
            let put = || {
                rows::put_build(txn, &summary, vertices.as_deref())?;
                documents.iter().try_for_each(|(digest, data)| rows::put_attachment(txn, id, digest, data))
            };
            put().map_err(StoreError::metadata("record a build"))
        });
        let mut state = self.state.lock();
        state.live.remove(id);
        match noted {
            Ok(()) => drop(state.known.insert(id.to_owned())),
            Err(error) => tracing::warn!(%error, build = id, "a build is not recorded"),
        }
        self.tell(News::Recorded(id.to_owned()));
        drop(state);
        if let Err(error) = self.trim() {
            tracing::warn!(%error, "old builds are not forgotten");
        }
        self.written.send_modify(|count| *count += 1);
    }

    /// Writes a log under a temporary name, and renames it when it is on disk.
    fn write_log(
        &self,
        id: &str,
        mut events: Subscription,
        tally: &mut Tally,
        runtime: &Handle,
    ) -> io::Result<(u64, LogRecord)> {
        let mut file = tempfile::Builder::new().prefix(".writing-").tempfile_in(&self.directory)?;
        let mut writer = LogWriter::new(io::BufWriter::new(file.as_file_mut()))?;
        let mut wrote = Ok(());
        while let Some(packed) = runtime.block_on(events.next_packed()).map_err(io::Error::other)? {
            let _turn = self.writing.lock();
            if wrote.is_ok() {
                wrote = writer.write(&packed);
            }
            tally.take(StatusResponse::decode(packed.as_slice()).map_err(io::Error::other)?);
        }
        wrote?;
        let (packed, log) = writer.finish()?;
        packed.into_inner().map_err(io::IntoInnerError::into_error)?;
        file.as_file().sync_all()?;
        let bytes = file.as_file().metadata()?.len();
        file.persist(log_path(&self.directory, id)).map_err(|error| error.error)?;
        File::open(&self.directory)?.sync_all()?;
        Ok((bytes, log))
    }

    /// Drops what is over the limits, oldest first.
    fn trim(&self) -> Result<(), HistoryError> {
        let limits = &self.limits;
        let now = SystemTime::now();
        let mut bytes = 0;
        let mut over = Vec::new();
        for (number, row) in rows::sizes(&self.metadata)?.into_iter().enumerate() {
            bytes += row.log_bytes.unwrap_or(0);
            let age = now.duration_since(row.created).unwrap_or_default();
            let is_old = number >= limits.entries && (age > limits.age || number >= limits.most);
            if !row.pinned
                && (is_old || (bytes > limits.log_bytes && number > 0))
                && !self.state.lock().live.contains_key(&row.id)
            {
                over.push(row.id);
            }
        }
        self.forget(&over)
    }

    pub(crate) fn forget(&self, ids: &[String]) -> Result<(), HistoryError> {
        if ids.is_empty() {
            return Ok(());
        }
        rows::drop_builds(&self.metadata, ids)?;
        for id in ids {
            self.state.lock().known.remove(id);
            self.tell(News::Forgotten(id.clone()));
            let path = log_path(&self.directory, id);
            match fs::remove_file(&path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    return Err(HistoryError::io("remove", path)(error));
                }
                _ => {}
            }
        }
        Ok(())
    }
}
