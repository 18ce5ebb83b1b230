//! What is left to delete of things that are forgotten already.

use std::fmt;

use crate::{StoreError, Usage};

type Deletion = Box<dyn FnOnce() -> Result<Usage, StoreError> + Send>;

/// Deletions that are still to be run after things were forgotten. Dropping it runs none: the next start finds the files.
#[must_use = "nothing is deleted until `delete` is called"]
#[derive(Default)]
pub struct Leftovers(Vec<Deletion>);

impl Leftovers {
    /// Nothing to delete.
    pub fn none() -> Self {
        Self::default()
    }

    /// Adds a deletion, which runs after those added before and says what it freed.
    pub fn push(&mut self, deletion: impl FnOnce() -> Result<Usage, StoreError> + Send + 'static) {
        self.0.push(Box::new(deletion));
    }

    /// Runs all deletions, also after one fails, and says what they freed: a file that others link to frees nothing. Errors: the first failure.
    pub fn delete(self) -> Result<Usage, StoreError> {
        let mut freed = Ok(Usage::default());
        for deletion in self.0 {
            let more = deletion();
            freed = freed.and_then(|freed| Ok(freed + more?));
        }
        freed
    }
}

impl fmt::Debug for Leftovers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Leftovers").field(&self.0.len()).finish()
    }
}
