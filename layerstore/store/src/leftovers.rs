//! What is left to delete of things that are forgotten already.

use std::fmt;

use crate::StoreError;

type Deletion = Box<dyn FnOnce() -> Result<(), StoreError> + Send>;

/// Deletions that are still to be run after things were forgotten. Dropping it runs none: the next start finds the files.
#[must_use = "nothing is deleted until `delete` is called"]
#[derive(Default)]
pub struct Leftovers(Vec<Deletion>);

impl Leftovers {
    /// Nothing to delete.
    pub fn none() -> Self {
        Self::default()
    }

    /// Adds a deletion, which runs after those added before.
    pub fn push(&mut self, deletion: impl FnOnce() -> Result<(), StoreError> + Send + 'static) {
        self.0.push(Box::new(deletion));
    }

    /// Runs all deletions, also after one fails. Errors: the first failure.
    pub fn delete(self) -> Result<(), StoreError> {
        self.0.into_iter().map(|deletion| deletion()).fold(Ok(()), Result::and)
    }
}

impl fmt::Debug for Leftovers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Leftovers").field(&self.0.len()).finish()
    }
}
