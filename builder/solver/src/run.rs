//! Running ops, at most once at a time for a key, whichever nodes want it.
//!
//! Nodes are shared by builds that have the same vertex. Behind files of a client the vertices of two builds differ although the files are
//! the same, and so does the same image by two names. So before an op runs, its *work* is looked for among what runs already: it is the
//! same if the links that would be saved for it lead on from some key of each input. That is what would be found in the cache a
//! moment later.
//!
//! ```text
//!   node ──claim──┬─ nobody does this work: its op runs ──► result saved ──► claim ends
//!                 └─ somebody does: wait for it as a guest; its logs are shown here too, and it may use this node's builds
//! ```
//!
//! A claim ends after its result is saved, and whoever claims looks into the cache once more before the op runs. So work is either
//! found running or found done.

use std::{
    collections::HashMap,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use futures::future::{BoxFuture, join_all};
use lapstrake_builder_progress::{Emit, Event, Fan, Log, Status, StatusHandle, Warning};
use lapstrake_layerstore_oci::Digest;
use parking_lot::Mutex;
use tokio_util::sync::CancellationToken;

use crate::{
    CacheMap, InputKeys, KeyId, Miss, SolveError, Types,
    flight::{Flight, Seat},
    node::{Failure, Node, Ready},
};

/// What an op made, each output with the keys it is known by.
pub(crate) type Outputs<X> = Arc<Vec<(<X as Types>::Value, Arc<Vec<KeyId>>)>>;

/// Why a run made nothing.
pub(crate) enum RunEnd<X: Types> {
    Failed(Failure<X::Error>),
    /// The cache has a result by now.
    Cached,
}

impl<X: Types> Clone for RunEnd<X> {
    fn clone(&self) -> Self {
        match self {
            Self::Failed(failure) => Self::Failed(failure.clone()),
            Self::Cached => Self::Cached,
        }
    }
}

type Run<X> = Arc<Flight<Outputs<X>, RunEnd<X>>>;
type Ran<X> = Result<Outputs<X>, RunEnd<X>>;

/// How often a node waits for others' runs that then fail, before it stops relying on others.
const PATIENCE: u32 = 3;

/// The work that is being done, by the digest of its op.
pub(crate) struct Runs<X: Types> {
    claims: Mutex<HashMap<Digest, Vec<Claim<X>>>>,
    numbers: AtomicU64,
}

struct Claim<X: Types> {
    number: u64,
    keys: Vec<InputKeys>,
    run: Run<X>,
    node: Arc<Node<X>>,
}

impl<X: Types> Default for Runs<X> {
    fn default() -> Self {
        Self { claims: Mutex::default(), numbers: AtomicU64::new(0) }
    }
}

impl<X: Types> Runs<X> {
    /// A number that no build and no claim has yet.
    pub(crate) fn number(&self) -> u64 {
        self.numbers.fetch_add(1, Ordering::Relaxed)
    }

    /// How many pieces of work are claimed.
    pub(crate) fn len(&self) -> usize {
        self.claims.lock().values().map(Vec::len).sum()
    }

    fn end(&self, digest: &Digest, number: u64) {
        let mut claims = self.claims.lock();
        let mut ended = None;
        if let Some(same) = claims.get_mut(digest) {
            ended = same.iter().position(|claim| claim.number == number).map(|at| same.swap_remove(at));
            if same.is_empty() {
                claims.remove(digest);
            }
        }
        drop(claims);
        // Dropped without the lock: it may be the last to hold a node.
        drop(ended);
    }
}

/// Ends a claim, whatever becomes of the work.
struct Claimed<X: Types> {
    runs: Arc<Runs<X>>,
    digest: Digest,
    number: u64,
}

impl<X: Types> Drop for Claimed<X> {
    fn drop(&mut self) {
        self.runs.end(&self.digest, self.number);
    }
}

/// Whether links saved from `theirs` would be found from `ours`. A foreign key means nothing to the own cache.
fn same_work(ours: &[InputKeys], theirs: &[InputKeys]) -> bool {
    let meet = |(ours, theirs): (&InputKeys, &InputKeys)| {
        ours.iter().any(|key| !key.0.is_foreign() && theirs.contains(key))
    };
    ours.len() == theirs.len() && ours.iter().zip(theirs).all(meet)
}

/// The node whose op runs, and the keys that its links will lead from.
type Host<X> = (Arc<Node<X>>, Vec<InputKeys>);

type RunSeat<X> = Seat<Outputs<X>, RunEnd<X>>;

impl<X: Types> Node<X> {
    /// Runs the op and saves what it made, or waits for somebody who does the same. `known` tells whether a cache knows a key for it.
    ///
    /// Once begun it goes on for as long as any build has the node, even if nobody listens for a while. A failure that has nothing to do with
    /// the builds is that of every build that has the node by then, also of one that asks later.
    pub(crate) fn exec(
        self: &Arc<Self>,
        ready: &Arc<Ready<X>>,
        output: u32,
        known: bool,
    ) -> BoxFuture<'static, Ran<X>> {
        let (node, ready) = (Arc::clone(self), Arc::clone(ready));
        Box::pin(async move {
            let seat = node.stages.exec.enter(|cancel| {
                let node = Arc::clone(&node);
                async move {
                    if let Some(failure) = node.failure.lock().clone() {
                        return Err(RunEnd::Failed(failure));
                    }
                    let ran = tokio::select! {
                        () = cancel.cancelled() => Err(RunEnd::Failed(Failure::of(SolveError::Canceled))),
                        ran = node.run(ready, output, known) => ran,
                    };
                    if let Err(RunEnd::Failed(
                        failure @ Failure { error: SolveError::Op { .. }, blame: None },
                    )) = &ran
                    {
                        *node.failure.lock() = Some(failure.clone());
                    }
                    ran
                }
            });
            if let Some(stake) = seat.stake() {
                node.scopes.hold(stake);
            }
            seat.answer().await.unwrap_or_else(|| Err(RunEnd::Failed(node.lost())))
        })
    }

    async fn run(self: &Arc<Self>, ready: Arc<Ready<X>>, output: u32, known: bool) -> Ran<X> {
        let map = self.cache_map().await.map_err(RunEnd::Failed)?;
        if self.ignore_cache || map.ephemeral {
            let seat =
                Run::<X>::default().enter(|cancel| Arc::clone(self).work(map, ready, known, output, cancel));
            return seat.answer().await.unwrap_or_else(|| Err(RunEnd::Failed(self.lost())));
        }
        match self.claim(&map, &ready, output, known) {
            (seat, None) => seat.answer().await.unwrap_or_else(|| Err(RunEnd::Failed(self.lost()))),
            (seat, Some((host, keys))) => {
                let ran = self.visit(&host, seat).await;
                match &ran {
                    Ok(outputs) => {
                        if keys != ready.keys {
                            // Links lead from this node's inputs too to what the other made.
                            for (output, (_, keys)) in (0..).zip(outputs.iter()) {
                                self.learn(&map, output, keys, &ready.keys).await;
                            }
                        }
                        self.vertex.complete();
                    }
                    Err(RunEnd::Failed(_)) => _ = self.let_down.fetch_add(1, Ordering::Relaxed),
                    Err(RunEnd::Cached) => {}
                }
                ran
            }
        }
    }

    /// A seat at the run of this work, and whose it is where it is somebody else's.
    fn claim(
        self: &Arc<Self>,
        map: &Arc<CacheMap>,
        ready: &Arc<Ready<X>>,
        output: u32,
        known: bool,
    ) -> (RunSeat<X>, Option<Host<X>>) {
        let mut claims = self.runs.claims.lock();
        let same = claims.entry(map.digest.clone()).or_default();
        if self.let_down.load(Ordering::Relaxed) < PATIENCE {
            for claim in same.iter().filter(|claim| same_work(&ready.keys, &claim.keys)) {
                // A run that nobody waits for any more is about to end, and of no use.
                if let Some(seat) = claim.run.join() {
                    // This node's own builds may have left it to guests, and others come.
                    let other = !Arc::ptr_eq(&claim.node, self);
                    return (seat, other.then(|| (Arc::clone(&claim.node), claim.keys.clone())));
                }
            }
        }
        let (run, number) = (Run::<X>::default(), self.runs.number());
        let seat = run.enter(|cancel| {
            let (node, map, ready) = (Arc::clone(self), Arc::clone(map), Arc::clone(ready));
            async move {
                let digest = map.digest.clone();
                let _claimed = Claimed { runs: Arc::clone(&node.runs), digest, number };
                // Whoever did this work until a moment ago has saved it.
                let keys = node.keys_when_ready(&map, output, &ready);
                if node.caches.has_any(&keys).await {
                    return Err(RunEnd::Cached);
                }
                node.work(map, ready, known, output, cancel).await
            }
        });
        same.push(Claim { number, keys: ready.keys.clone(), run, node: Arc::clone(self) });
        (seat, None)
    }

    /// Runs the op and saves what it made. Not droppable: the op ends by itself when cancelled, and leaves nothing behind.
    async fn work(
        self: Arc<Self>,
        map: Arc<CacheMap>,
        ready: Arc<Ready<X>>,
        known: bool,
        output: u32,
        cancel: CancellationToken,
    ) -> Ran<X> {
        let canceled = || Err(RunEnd::Failed(Failure::of(SolveError::Canceled)));
        if cancel.is_cancelled() {
            return canceled();
        }
        self.vertex.start();
        let cx = self.context(cancel.clone());
        let cause = self.cause(&map, output, &ready.keys, known);
        let miss = Miss { cause, map: &map, inputs: &ready.values, keys: &ready.keys };
        tokio::select! {
            () = self.op.missed(&cx, miss) => {}
            () = cancel.cancelled() => {}
        }
        // An op that nobody waits for is not begun: somebody else may be about to.
        if cancel.is_cancelled() {
            self.vertex.fail("context canceled");
            return canceled();
        }
        let outputs = self.op.exec(&cx, ready.values.clone()).await;
        if cancel.is_cancelled() {
            self.vertex.fail("context canceled");
            return canceled();
        }
        let outputs = outputs.map_err(|error| RunEnd::Failed(self.failed(&cx, error)))?;
        let saves = outputs.into_iter().zip(0..).map(|(value, output)| {
            let (node, map, ready) = (&self, &map, &ready);
            async move {
                let keys = node.save(map, output, &ready.keys, &value).await;
                (value, Arc::new(keys))
            }
        });
        let saved = join_all(saves).await;
        self.vertex.complete();
        Ok(Arc::new(saved))
    }

    /// Waits for the run of another node.
    async fn visit(self: &Arc<Self>, host: &Arc<Self>, seat: RunSeat<X>) -> Ran<X> {
        self.vertex.start();
        let visit = Visit::new(self, host);
        let ran = seat.answer().await;
        drop(visit);
        let failure = match ran {
            Some(Err(RunEnd::Failed(failure))) => failure,
            Some(ran) => return ran,
            None => return Err(RunEnd::Failed(self.lost())),
        };
        // What is wrong with the other vertex is wrong with this one.
        let error = match failure.error {
            SolveError::Op { source, .. } => {
                SolveError::Op { vertex: self.digest.clone(), name: self.name.clone(), source }
            }
            other => other,
        };
        self.vertex.fail(error.to_string());
        Err(RunEnd::Failed(Failure { error, blame: failure.blame }))
    }
}

/// A node that waits for another's run: it shows what the other shows, and lends it its builds.
struct Visit<X: Types> {
    host: Arc<Node<X>>,
    number: u64,
    _waiting: StatusHandle,
}

impl<X: Types> Visit<X> {
    fn new(guest: &Arc<Node<X>>, host: &Arc<Node<X>>) -> Self {
        let number = guest.runs.number();
        let waiting = guest.vertex.part(format!("waiting for another build: {}", host.name), "", 0);
        host.scopes.welcome(number, Arc::clone(&guest.scopes));
        host.fan.relay(number, Arc::new(Relay { vertex: guest.digest.clone(), to: guest.fan.clone() }));
        Self { host: Arc::clone(host), number, _waiting: waiting }
    }
}

impl<X: Types> Drop for Visit<X> {
    fn drop(&mut self) {
        self.host.scopes.dismiss(self.number);
        self.host.fan.leave(self.number);
    }
}

/// Shows what happens on one vertex as happening on another. When each of the two starts and ends is its own affair.
struct Relay {
    vertex: Digest,
    to: Fan,
}

impl Emit for Relay {
    fn emit(&self, event: &Event) {
        let vertex = self.vertex.clone();
        self.to.emit(&match event.clone() {
            Event::Vertex(_) => return,
            Event::Status(status) => Event::Status(Status { vertex, ..status }),
            Event::Log(log) => Event::Log(Log { vertex, ..log }),
            Event::Warning(warning) => Event::Warning(Warning { vertex, ..warning }),
        });
    }
}
