//! Content digests of trees: BuildKit's, to the byte, because cache keys are made of them and caches are exchanged.
//!
//! ```text
//!   Selector ─┬─ a path ─────────────► scan: a file's record, or a directory's over all that is in it
//!             └─ wildcards, patterns ► select: records of what is chosen, in order
//!                                         record: header and content of one file, link, device or directory header
//!   memory: what is known of immutable trees and files already
//! ```
//!
//! Only what is selected is read. (BuildKit also hashes what patterns leave out, and throws it away.)

mod memory;
mod record;
mod scan;
mod select;

use std::sync::Arc;

use lapstrake_builder_llb::{cache_key::Selector, clean_path};
use lapstrake_layerstore_oci::Digest;
use lapstrake_layerstore_store::{OpenSnapshot, SnapshotMount, Stores, Tree};

pub use self::{memory::FileRecords, record::file_prefix};
use self::{
    memory::Memory,
    scan::{Scan, SeenRecord},
    select::Selected,
};
use crate::FilesError;

/// Makes content digests, and remembers them. One per daemon.
///
/// BuildKit learns the digests of a build context while it arrives, and what arrives has no entry for the root directory,
/// whose header then counts as empty. So it does here for trees that were marked with
/// [`Draft::mark_received`](lapstrake_layerstore_store::Draft::mark_received).
pub struct ContentHasher {
    stores: Stores,
    memory: Memory,
}

/// What counts of a tree.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ContentDigests {
    /// BuildKit's digest of it.
    pub digest: Digest,
    /// The digest that BuildKit before 0.26 made of it, if it was another, and no other content has it.
    pub before_0_26: Option<Digest>,
}

/// Something in a tree.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FileDigest {
    /// Its path, without a slash before it; with one after it for a directory, whose digest is that of its header alone.
    pub path: Vec<u8>,
    /// BuildKit's digest of it.
    pub digest: Digest,
}

impl ContentHasher {
    /// Digests of trees in these stores.
    pub fn new(stores: Stores) -> Self {
        Self { stores, memory: Memory::default() }
    }

    /// BuildKit's digest of what the selectors choose of a tree; without selectors, of all of it. Blocks.
    ///
    /// Errors: [`FilesError::NotFound`] for a path, without wildcards or patterns, where nothing is, and for a required path
    /// that is not among what was chosen. A wildcard without a match is no error, but the digest of nothing.
    pub fn digest(&self, tree: &Tree, selectors: &[Selector]) -> Result<Digest, FilesError> {
        Ok(self.digests(tree, selectors)?.digest)
    }

    /// The same, and what older versions of BuildKit made of it.
    pub fn digests(&self, tree: &Tree, selectors: &[Selector]) -> Result<ContentDigests, FilesError> {
        let all = [Selector::default()];
        let selectors = if selectors.is_empty() { &all } else { selectors };
        let mut open = None;
        let (mut today, mut older) = (Vec::new(), Some(Vec::new()));
        for selector in selectors {
            let Selected { digest, before_0_26 } = self.one(tree, selector, &mut open)?;
            today.push(digest.as_str().to_owned());
            older = older.zip(before_0_26).map(|(mut older, digest)| {
                older.push(digest.as_str().to_owned());
                older
            });
        }
        let of = |digests: Vec<String>| Digest::sha256_of(digests.join("\0"));
        let digest = of(today);
        let before_0_26 = older.map(of).filter(|older| *older != digest);
        Ok(ContentDigests { digest, before_0_26 })
    }

    /// Takes somebody's word for the records of files in a tree, by their paths without a slash before them: they are not read then. `files` is not
    /// asked where that is known. Forgotten when others come.
    pub fn learn(&self, tree: &Tree, files: impl FnOnce() -> FileRecords) {
        if let Some(snapshot) = tree.snapshot() {
            self.memory.learn(snapshot, files);
        }
    }

    /// What the selectors choose of a tree: paths (a directory's ends with a slash) and digests of their records. `None` when that is too
    /// much to tell, or files would have to be read for it that were read before. Blocks.
    pub fn listing(
        &self,
        tree: &Tree,
        selectors: &[Selector],
    ) -> Result<Option<Vec<FileDigest>>, FilesError> {
        let all = [Selector::default()];
        let selectors = if selectors.is_empty() { &all } else { selectors };
        let Some(snapshot) = tree.snapshot() else { return Ok(Some(Vec::new())) };
        let mut files = Vec::new();
        for selector in selectors {
            let listing = match self.memory.listing(snapshot, selector) {
                Some(listing) => Some(listing),
                None => self.list(tree, selector)?,
            };
            let Some(listing) = listing else { return Ok(None) };
            files.extend(
                listing
                    .iter()
                    .map(|(path, digest)| FileDigest { path: path.clone(), digest: digest.clone() }),
            );
        }
        Ok(Some(files))
    }

    /// Goes through a tree of which digests were made already.
    fn list(&self, tree: &Tree, selector: &Selector) -> Result<Option<Arc<Vec<SeenRecord>>>, FilesError> {
        let Some(mount @ SnapshotMount::Bind { .. }) = self.stores.mount(tree)? else { return Ok(None) };
        let open = OpenSnapshot::open(&mount)?;
        let learned = tree.snapshot().and_then(|snapshot| self.memory.learned(snapshot));
        let mut scan =
            Scan::new(open.root(), Some(&self.memory), learned).map_err(|source| failed(tree, source))?;
        let path = clean_path(&format!("/{}", selector.path));
        scan.select(&path, selector).map_err(|source| failed(tree, source))?;
        Ok(scan.into_seen().map(Arc::new))
    }

    fn one(
        &self,
        tree: &Tree,
        selector: &Selector,
        open: &mut Option<(OpenSnapshot, bool)>,
    ) -> Result<Selected, FilesError> {
        let path = clean_path(&format!("/{}", selector.path));
        let Some(snapshot) = tree.snapshot() else {
            if path == "/" {
                return Ok(Digest::sha256_of(b"").into());
            }
            return Err(FilesError::NotFound { tree: None, path });
        };
        if let Some(selected) = self.memory.selection(snapshot, selector) {
            return Ok(selected);
        }
        if open.is_none() {
            let Some(mount) = self.stores.mount(tree)? else {
                unreachable!("only the empty tree has no mount, and it has no snapshot either")
            };
            // Overlayfs gives files other device numbers each time, and inode numbers that a changed file shares with the
            // one that it was; a directory gives the true ones.
            let inodes_are_true = matches!(mount, SnapshotMount::Bind { .. });
            *open = Some((OpenSnapshot::open(&mount)?, inodes_are_true));
        }
        let (snapshot_open, inodes_are_true) = open.as_ref().expect("it was just opened");
        let memory = inodes_are_true.then_some(&self.memory);
        let mut scan = Scan::new(snapshot_open.root(), memory, self.memory.learned(snapshot))
            .map_err(|source| failed(tree, source))?;
        let selected = scan.select(&path, selector).map_err(|source| failed(tree, source))?;
        self.memory.remember_selection(snapshot, selector, &selected);
        if let Some(seen) = scan.into_seen() {
            self.memory.remember_listing(snapshot, selector, Arc::new(seen));
        }
        Ok(selected)
    }
}

/// Names the tree in an error.
fn failed(tree: &Tree, source: FilesError) -> FilesError {
    let tree = tree.snapshot().map(ToString::to_string);
    match source {
        FilesError::NotFound { path, .. } => FilesError::NotFound { tree, path },
        source => {
            let tree = tree.unwrap_or_else(|| "scratch".to_owned());
            FilesError::Digest { tree, source: Box::new(source) }
        }
    }
}

impl std::fmt::Debug for ContentHasher {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ContentHasher").finish_non_exhaustive()
    }
}
