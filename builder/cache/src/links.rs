//! Answers about links that were given lately: a build that is all hits asks the same as the one before.

use std::{collections::HashMap, sync::Arc};

use lapstrake_builder_solver::{KeyId, Link};
use parking_lot::Mutex;

/// Most questions whose answers are kept: some 2 MiB. A build of more steps than that asks the database for the rest.
const MOST: usize = 8192;

/// Where links led when it was last asked, as long as none has changed since.
///
/// Whoever changes links or results does it while it holds a [`Change`]: what is read meanwhile may be from before the change, and is not kept.
#[derive(Clone, Default)]
pub(crate) struct KnownLinks(Arc<Mutex<Known>>);

/// What was asked about a key, and where that led.
type Answers = Vec<(Link, Arc<[KeyId]>)>;

#[derive(Default)]
struct Known {
    answers: HashMap<KeyId, Answers>,
    count: usize,
    changes: u64,
    changing: u32,
}

impl KnownLinks {
    /// The answer that was given to this question, or what `ask` says.
    pub(crate) fn get_or_ask<E>(
        &self,
        from: &KeyId,
        link: &Link,
        ask: impl FnOnce() -> Result<Vec<KeyId>, E>,
    ) -> Result<Vec<KeyId>, E> {
        let before = {
            let known = self.0.lock();
            let about = known.answers.get(from).into_iter().flatten();
            if let Some((_, answer)) = about.into_iter().find(|(asked, _)| asked == link) {
                return Ok(answer.to_vec());
            }
            known.changes
        };
        let answer = ask()?;
        let mut known = self.0.lock();
        if known.changes == before && known.changing == 0 && known.count < MOST {
            known.count += 1;
            known.answers.entry(from.clone()).or_default().push((link.clone(), answer.as_slice().into()));
        }
        Ok(answer)
    }

    /// Begins a change, which ends when the value is dropped: after its transaction.
    pub(crate) fn change(&self) -> Change {
        let mut known = self.0.lock();
        known.changing += 1;
        known.forget();
        Change(self.clone())
    }
}

impl Known {
    fn forget(&mut self) {
        self.changes += 1;
        self.count = 0;
        self.answers = HashMap::new();
    }
}

/// Links or results are being changed.
#[must_use]
pub(crate) struct Change(KnownLinks);

impl Drop for Change {
    fn drop(&mut self) {
        let mut known = self.0.0.lock();
        known.changing -= 1;
        known.forget();
    }
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use lapstrake_layerstore_oci::Digest;

    use super::*;

    fn link(input: u32) -> Link {
        Link { input, output: 0, digest: Digest::sha256_of("op"), selector: None }
    }

    fn ask(links: &KnownLinks, input: u32, answer: &str) -> Vec<KeyId> {
        let answer = vec![KeyId::new(answer)];
        links.get_or_ask::<Infallible>(&KeyId::new("from"), &link(input), || Ok(answer)).unwrap()
    }

    #[test]
    fn an_answer_is_good_until_something_changes() {
        let links = KnownLinks::default();
        assert_eq!(ask(&links, 0, "a"), [KeyId::new("a")]);
        assert_eq!(ask(&links, 0, "b"), [KeyId::new("a")]);
        assert_eq!(ask(&links, 1, "c"), [KeyId::new("c")]);
        drop(links.change());
        assert_eq!(ask(&links, 0, "b"), [KeyId::new("b")]);
    }

    #[test]
    fn what_is_read_during_a_change_is_not_kept() {
        let links = KnownLinks::default();
        let change = links.change();
        assert_eq!(ask(&links, 0, "old"), [KeyId::new("old")]);
        drop(change);
        assert_eq!(ask(&links, 0, "new"), [KeyId::new("new")]);
    }

    #[test]
    fn what_was_asked_before_a_change_and_answered_after_it_is_not_kept() {
        let links = KnownLinks::default();
        let slow = || {
            drop(links.change());
            Ok::<_, Infallible>(vec![KeyId::new("old")])
        };
        links.get_or_ask(&KeyId::new("from"), &link(0), slow).unwrap();
        assert_eq!(ask(&links, 0, "new"), [KeyId::new("new")]);
    }

    #[test]
    fn no_more_is_kept_than_it_says() {
        let links = KnownLinks::default();
        for input in 0..20_000 {
            ask(&links, input, "a");
        }
        assert_eq!(links.0.lock().count, MOST);
    }
}
