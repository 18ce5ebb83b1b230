//! Work that several tasks wait for, and that runs at most once at a time.

use std::{future::Future, sync::Arc};

use parking_lot::Mutex;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

/// A piece of work: not begun, running in a task of its own, or done.
///
/// It is cancelled when the last of those who wait for it goes away, and begun afresh when somebody asks again. A good answer is
/// kept; a bad one is told to those who wait and then forgotten: what it means for others is not a flight's to know.
pub(crate) struct Flight<T, E>(Mutex<State<T, E>>);

enum State<T, E> {
    Idle,
    Running { generation: u64, waiting: usize, cancel: CancellationToken, answer: Answer<T, E> },
    Done(T),
}

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
    /// Cancel-safe: dropping the future is what "not waiting any more" means.
    pub(crate) async fn get<F, Work>(self: &Arc<Self>, start: F) -> Option<Result<T, E>>
    where
        F: FnOnce(CancellationToken) -> Work,
        Work: Future<Output = Result<T, E>> + Send + 'static,
    {
        self.enter(start).answer().await
    }

    /// Begins to wait, beginning the work with `start` if it is not running.
    pub(crate) fn enter<F, Work>(self: &Arc<Self>, start: F) -> Seat<T, E>
    where
        F: FnOnce(CancellationToken) -> Work,
        Work: Future<Output = Result<T, E>> + Send + 'static,
    {
        let mut state = self.0.lock();
        if let Some(seat) = self.seat(&mut state) {
            return seat;
        }
        let generation = next_generation();
        let cancel = CancellationToken::new();
        let (tell, answer) = watch::channel(None);
        let work = start(cancel.clone());
        let flight = Arc::clone(self);
        tokio::spawn(async move {
            let result = work.await;
            flight.finish(generation, &result);
            tell.send_replace(Some(result));
        });
        *state = State::Running { generation, waiting: 1, cancel, answer: answer.clone() };
        Seat::Waiting(answer, Waiter { flight: Arc::clone(self), generation })
    }

    /// Begins to wait for work that runs, or ran well; `None` if there is none.
    pub(crate) fn join(self: &Arc<Self>) -> Option<Seat<T, E>> {
        self.seat(&mut self.0.lock())
    }

    fn seat(self: &Arc<Self>, state: &mut State<T, E>) -> Option<Seat<T, E>> {
        match state {
            State::Idle => None,
            State::Done(value) => Some(Seat::Done(value.clone())),
            State::Running { generation, waiting, answer, .. } => {
                // A task that panicked leaves the state behind; it is as idle as a cancelled one.
                if answer.has_changed().is_err() && answer.borrow().is_none() {
                    *state = State::Idle;
                    return None;
                }
                *waiting += 1;
                let waiter = Waiter { flight: Arc::clone(self), generation: *generation };
                Some(Seat::Waiting(answer.clone(), waiter))
            }
        }
    }

    /// The answer, if there is one.
    pub(crate) fn done(&self) -> Option<T> {
        match &*self.0.lock() {
            State::Done(value) => Some(value.clone()),
            State::Idle | State::Running { .. } => None,
        }
    }

    fn finish(&self, generation: u64, result: &Result<T, E>) {
        let mut state = self.0.lock();
        if matches!(&*state, State::Running { generation: current, .. } if *current == generation) {
            *state = match result {
                Ok(value) => State::Done(value.clone()),
                Err(_) => State::Idle,
            };
        }
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
