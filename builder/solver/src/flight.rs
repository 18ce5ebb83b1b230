//! Work that several tasks wait for, and that runs at most once at a time.

use std::{
    cell::Cell,
    future::Future,
    panic::{AssertUnwindSafe, catch_unwind},
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, Waker},
};

use parking_lot::Mutex;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

/// How deep work that is begun on the spot may begin further work on the spot: a deep graph must not cost stack.
const DEPTH: u32 = 8;

thread_local! {
    static DEEP: Cell<u32> = const { Cell::new(0) };
}

/// A piece of work: not begun, running, or done.
///
/// It is cancelled when the last of those who wait for it goes away, and begun afresh when somebody asks again. A good answer is
/// kept; a bad one is told to those who wait and then forgotten: what it means for others is not a flight's to know.
pub(crate) struct Flight<T, E>(Mutex<State<T, E>>);

enum State<T, E> {
    Idle,
    Running { generation: u64, waiting: usize, cancel: CancellationToken, tell: Option<Tell<T, E>> },
    Done(T),
}

/// Made when there is somebody to be told; dropped without a word when the work panics.
type Tell<T, E> = watch::Sender<Option<Result<T, E>>>;
type Answer<T, E> = watch::Receiver<Option<Result<T, E>>>;

impl<T, E> Default for Flight<T, E> {
    fn default() -> Self {
        Self(Mutex::new(State::Idle))
    }
}

impl<T, E> Flight<T, E>
where
    T: Clone + Send + Sync + 'static,
    E: Clone + Send + Sync + 'static,
{
    /// The answer, beginning the work with `start` if it is not running. `None` when the work panicked.
    ///
    /// Work that need not wait for anything is done on the spot; the rest in a task of its own.
    ///
    /// Cancel-safe: dropping the future is what "not waiting any more" means.
    pub(crate) async fn get<F, Work>(self: &Arc<Self>, start: F) -> Option<Result<T, E>>
    where
        F: FnOnce(CancellationToken) -> Work,
        Work: Future<Output = Result<T, E>> + Send + 'static,
    {
        if DEEP.get() >= DEPTH {
            return self.enter(start).answer().await;
        }
        let seat = match self.begin() {
            Begun::Before(seat) => seat,
            Begun::Now(pilot, cancel) => {
                let mut work = Box::pin(start(cancel));
                let waiting = Waiter { flight: Arc::clone(self), generation: pilot.generation };
                match on_the_spot(work.as_mut()) {
                    Some(Poll::Ready(result)) => {
                        pilot.end(&result);
                        return Some(result);
                    }
                    // It panicked.
                    None => return None,
                    Some(Poll::Pending) => {
                        let seat = self.listen(waiting);
                        tokio::spawn(async move { pilot.end(&work.await) });
                        seat
                    }
                }
            }
        };
        seat.answer().await
    }

    /// Begins to wait, beginning the work with `start` in a task of its own if it is not running.
    pub(crate) fn enter<F, Work>(self: &Arc<Self>, start: F) -> Seat<T, E>
    where
        F: FnOnce(CancellationToken) -> Work,
        Work: Future<Output = Result<T, E>> + Send + 'static,
    {
        match self.begin() {
            Begun::Before(seat) => seat,
            Begun::Now(pilot, cancel) => {
                let work = start(cancel);
                let seat = self.listen(Waiter { flight: Arc::clone(self), generation: pilot.generation });
                tokio::spawn(async move { pilot.end(&work.await) });
                seat
            }
        }
    }

    /// Begins to wait for work that runs, or ran well; `None` if there is none.
    pub(crate) fn join(self: &Arc<Self>) -> Option<Seat<T, E>> {
        self.seat(&mut self.0.lock())
    }

    /// Begins to wait, as the first where nothing runs: then the caller must see to it that it does.
    fn begin(self: &Arc<Self>) -> Begun<T, E> {
        let mut state = self.0.lock();
        if let Some(seat) = self.seat(&mut state) {
            return Begun::Before(seat);
        }
        let (generation, cancel) = (next_generation(), CancellationToken::new());
        *state = State::Running { generation, waiting: 1, cancel: cancel.clone(), tell: None };
        Begun::Now(Pilot { flight: Arc::clone(self), generation }, cancel)
    }

    fn seat(self: &Arc<Self>, state: &mut State<T, E>) -> Option<Seat<T, E>> {
        match state {
            State::Idle => None,
            State::Done(value) => Some(Seat::Done(value.clone())),
            State::Running { generation, waiting, tell, .. } => {
                *waiting += 1;
                let answer = tell.get_or_insert_with(|| watch::channel(None).0).subscribe();
                Some(Seat::Waiting(answer, Waiter { flight: Arc::clone(self), generation: *generation }))
            }
        }
    }

    /// A seat for who waits without one.
    fn listen(self: &Arc<Self>, waiter: Waiter<T, E>) -> Seat<T, E> {
        let answer = match &mut *self.0.lock() {
            State::Running { generation, tell, .. } if *generation == waiter.generation => {
                tell.get_or_insert_with(|| watch::channel(None).0).subscribe()
            }
            _ => unreachable!("work goes on while somebody waits for it"),
        };
        Seat::Waiting(answer, waiter)
    }

    /// The answer, if there is one.
    pub(crate) fn done(&self) -> Option<T> {
        match &*self.0.lock() {
            State::Done(value) => Some(value.clone()),
            State::Idle | State::Running { .. } => None,
        }
    }
}

enum Begun<T, E> {
    Before(Seat<T, E>),
    Now(Pilot<T, E>, CancellationToken),
}

/// Polls once; `None` when it panics. What is not ready then is to be polled again at once: nothing will wake it.
fn on_the_spot<Work: Future>(work: Pin<&mut Work>) -> Option<Poll<Work::Output>> {
    let before = DEEP.get();
    DEEP.set(before + 1);
    let polled = catch_unwind(AssertUnwindSafe(|| work.poll(&mut Context::from_waker(Waker::noop()))));
    DEEP.set(before);
    polled.ok()
}

/// Whoever does the work: says how it ended.
struct Pilot<T, E> {
    flight: Arc<Flight<T, E>>,
    generation: u64,
}

impl<T: Clone, E: Clone> Pilot<T, E> {
    fn end(self, result: &Result<T, E>) {
        let next = match result {
            Ok(value) => State::Done(value.clone()),
            Err(_) => State::Idle,
        };
        if let Some(tell) = self.leave(next) {
            tell.send_replace(Some(result.clone()));
        }
    }
}

impl<T, E> Pilot<T, E> {
    /// Puts `next` in place of the work, if that is still what runs, and gives what those who wait listen to.
    fn leave(&self, next: State<T, E>) -> Option<Tell<T, E>> {
        let mut state = self.flight.0.lock();
        if !matches!(&*state, State::Running { generation, .. } if *generation == self.generation) {
            return None;
        }
        match std::mem::replace(&mut *state, next) {
            State::Running { tell, .. } => tell,
            State::Idle | State::Done(_) => None,
        }
    }
}

impl<T, E> Drop for Pilot<T, E> {
    /// Work that panicked leaves nothing, and those who wait hear that nobody speaks any more.
    fn drop(&mut self) {
        drop(self.leave(State::Idle));
    }
}

fn next_generation() -> u64 {
    use std::sync::atomic::{AtomicU64, Ordering};
    static NEXT: AtomicU64 = AtomicU64::new(0);
    NEXT.fetch_add(1, Ordering::Relaxed)
}

/// A place among those who wait for a flight.
pub(crate) enum Seat<T, E> {
    Done(T),
    Waiting(Answer<T, E>, Waiter<T, E>),
}

impl<T: Clone, E: Clone> Seat<T, E> {
    /// The answer; `None` when the work panicked.
    pub(crate) async fn answer(self) -> Option<Result<T, E>> {
        match self {
            Self::Done(value) => Some(Ok(value)),
            Self::Waiting(mut answer, _waiter) => {
                answer.wait_for(Option::is_some).await.ok().and_then(|answer| answer.clone())
            }
        }
    }

    /// One more who waits, without listening: the work goes on until it is dropped. `None` when the work is over.
    pub(crate) fn stake(&self) -> Option<Waiter<T, E>> {
        let Self::Waiting(_, waiter) = self else { return None };
        match &mut *waiter.flight.0.lock() {
            State::Running { generation, waiting, .. } if *generation == waiter.generation => {
                *waiting += 1;
                Some(Waiter { flight: Arc::clone(&waiter.flight), generation: waiter.generation })
            }
            _ => None,
        }
    }
}

/// Somebody who waits for a flight, until dropped.
pub(crate) struct Waiter<T, E> {
    flight: Arc<Flight<T, E>>,
    generation: u64,
}

impl<T, E> Drop for Waiter<T, E> {
    fn drop(&mut self) {
        let mut state = self.flight.0.lock();
        if let State::Running { generation, waiting, cancel, .. } = &mut *state
            && *generation == self.generation
        {
            *waiting -= 1;
            if *waiting == 0 {
                cancel.cancel();
                *state = State::Idle;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use tokio::sync::Notify;

    use super::*;

    type TestFlight = Flight<u32, String>;

    #[tokio::test]
    async fn work_runs_once_for_all_who_wait_and_for_those_who_come_later() {
        let flight = Arc::new(TestFlight::default());
        let runs = Arc::new(AtomicUsize::new(0));
        let go = Arc::new(Notify::new());
        let ask = || {
            let (flight, runs, go) = (Arc::clone(&flight), Arc::clone(&runs), Arc::clone(&go));
            async move {
                flight
                    .get(|_| async move {
                        runs.fetch_add(1, Ordering::SeqCst);
                        go.notified().await;
                        Ok(7)
                    })
                    .await
            }
        };
        go.notify_one();
        let (a, b) = tokio::join!(ask(), ask());
        assert_eq!((a, b, ask().await), (Some(Ok(7)), Some(Ok(7)), Some(Ok(7))));
        assert_eq!(runs.load(Ordering::SeqCst), 1);
    }

    #[tokio::test]
    async fn the_last_one_to_leave_cancels_and_the_next_one_begins_afresh() {
        let flight = Arc::new(TestFlight::default());
        let (seen, mut cancelled) = tokio::sync::mpsc::channel(1);
        {
            let first = flight.get(|cancel| async move {
                cancel.cancelled().await;
                seen.send(()).await.expect("the test listens");
                Err("cancelled".to_owned())
            });
            let second = flight.get(|_| async { unreachable!("it runs already") });
            tokio::pin!(first, second);
            assert!(futures::poll!(first.as_mut()).is_pending());
            assert!(futures::poll!(second.as_mut()).is_pending());
        }
        cancelled.recv().await.expect("the work was told");
        assert_eq!(flight.get(|_| async { Ok(1) }).await, Some(Ok(1)));
    }

    #[tokio::test]
    async fn a_failure_is_told_and_forgotten() {
        let flight = Arc::new(TestFlight::default());
        assert_eq!(flight.get(|_| async { Err("once".to_owned()) }).await, Some(Err("once".to_owned())));
        assert_eq!(flight.get(|_| async { Ok(2) }).await, Some(Ok(2)));
        assert_eq!(flight.get(|_| async { unreachable!("it is done") }).await, Some(Ok(2)));
    }

    #[tokio::test]
    async fn a_panic_is_no_answer_and_does_not_wedge_the_next() {
        let flight = Arc::new(TestFlight::default());
        assert_eq!(flight.get(|_| async { panic!("on purpose") }).await, None);
        assert_eq!(flight.get(|_| async { Ok(3) }).await, Some(Ok(3)));
    }
}
