//! Git bundles: a repository in one file. One may take the remote's place, and one may be what is left of a checkout.
//!
//! ```text
//!   read    blob ──► a repository in a directory of its own ──► what is else the remote
//!   write   remote, with all its history ──► a repository of one reference ──► the file `bundle`
//! ```

use std::{path::PathBuf, sync::Arc};

use futures::StreamExt;
use lapstrake_builder_llb::pb;
use lapstrake_layerstore_store::Tree;
use rustix::fs::OFlags;
use tempfile::TempDir;
use tokio_util::io::ReaderStream;

use super::{Git, program::GitCommand, repository::Pinned};
use crate::{
    SourceContext, SourceError,
    attrs::Attrs,
    blob::{BlobSpec, fetch_blob},
    http::{FileSpec, save},
    local::open_beneath,
    sources::Shared,
};

/// The file's name, read or written.
const FILE: &str = "bundle";
/// What a commit is called in a bundle that was asked for by its name alone.
const UNNAMED: &str = "refs/heads/main";

/// The blob that an op names as the repository.
pub(super) fn parse(attrs: &Attrs<'_>) -> Result<Option<BlobSpec>, SourceError> {
    const KEY: &str = "git.bundle";
    let Some(locator) = attrs.text(KEY) else { return Ok(None) };
    let (scheme, name) = locator.split_once("://").unwrap_or_default();
    let (scheme, store) = match scheme {
        // The part before the digest names the layout, unless the op does.
        "oci-layout+blob" => {
            let named = name.split('@').next();
            ("oci-layout+blob", attrs.text("oci.store").or(named))
        }
        "docker-image+blob" => ("docker-image+blob", None),
        _ => return Err(attrs.invalid(KEY, locator, "neither docker-image+blob:// nor oci-layout+blob://")),
    };
    if attrs.text("git.checksum").is_none() {
        return Err(attrs.invalid(KEY, locator, "git.bundle requires git.checksum to be set"));
    }
    let given =
        [("http.filename", Some(FILE)), ("oci.store", store), ("oci.session", attrs.text("oci.session"))];
    let given = given.into_iter().filter_map(|(key, value)| Some((key.to_owned(), value?.to_owned())));
    let op = pb::SourceOp { identifier: locator.to_owned(), attrs: given.collect() };
    BlobSpec::parse(scheme, name, &op).map(Some).map_err(|error| attrs.invalid(KEY, locator, error))
}

/// A bundle's content as a repository, while this lives.
pub(super) struct Staged {
    dir: TempDir,
}

impl Staged {
    /// Gets the blob, and unpacks it.
    pub(super) async fn get(
        shared: &Arc<Shared>,
        git: &Git<'_>,
        blob: &BlobSpec,
        cx: &SourceContext,
    ) -> Result<Self, SourceError> {
        let tree = fetch_blob(shared, blob, cx).await?;
        let dir = fresh_dir(shared)?;
        let (stores, file) = (shared.stores.clone(), dir.path().join(FILE));
        let copy = file.clone();
        SourceError::blocking(move || {
            let copied = || {
                let open = stores.open(&tree)?.ok_or_else(missing)?;
                let from = open_beneath(open.root(), FILE.as_ref(), OFlags::empty()).map_err(reading)?;
                let mut to = std::fs::File::create(&copy).map_err(SourceError::io("make", &copy))?;
                std::io::copy(&mut std::fs::File::from(from), &mut to)
                    .map_err(SourceError::io("write", &copy))?;
                Ok::<_, SourceError>(())
            };
            copied()
        })
        .await?;
        let staged = Self { dir };
        let local = |args: &[&str]| GitCommand { from_here: true, ..GitCommand::new(args.iter().copied()) };
        let path = file.to_string_lossy().into_owned();
        let listed = git.run(local(&["ls-remote", "--", &path])).await?.stdout;
        let object = listed.split('\t').next().unwrap_or_default();
        let repository = staged.repository();
        git.make_bare(&repository, object).await?;
        git.run(local(&["fetch", "--quiet", "--", &path, "+refs/*:refs/*"]).in_dir(&repository)).await?;
        std::fs::remove_file(&file).map_err(SourceError::io("remove", &file))?;
        Ok(staged)
    }

    fn repository(&self) -> PathBuf {
        self.dir.path().join("repository")
    }

    /// What git is given in the remote's place.
    pub(super) fn url(&self) -> String {
        format!("file://{}", self.repository().display())
    }
}

/// Writes the pinned commit, with all its history, as a bundle into a new tree.
pub(super) async fn write(shared: &Arc<Shared>, git: &Git<'_>, pinned: &Pinned) -> Result<Tree, SourceError> {
    let dir = fresh_dir(shared)?;
    let (repository, file) = (dir.path().join("repository"), dir.path().join(FILE));
    git.make_bare(&repository, &pinned.object).await?;
    let (name, object) = match pinned.reference.as_str() {
        tag if tag.starts_with("refs/tags/") => (tag, pinned.object.clone()),
        branch if branch.starts_with("refs/heads/") => (branch, format!("{}^{{commit}}", pinned.object)),
        _ => (UNNAMED, format!("{}^{{commit}}", pinned.object)),
    };
    let url = git.url();
    // What is shared with other builds has no history, and a bundle without it is of no use to anybody.
    let fetch = |refspec: String| {
        git.asking(["fetch", "--quiet", "--no-tags", "--", url, &refspec]).in_dir(&repository)
    };
    if git.tell(fetch(format!("+{}:refs/lapstrake/pinned", pinned.object))).await.is_err() {
        // A server that gives only what it lists.
        git.run(fetch("+refs/*:refs/lapstrake/*".to_owned())).await?;
    }
    let object = rev(git, &repository, &object).await?;
    git.run(GitCommand::new(["update-ref", "--no-deref", name, &object]).in_dir(&repository)).await?;
    let path = file.to_string_lossy();
    // One thread: the same objects are the same bytes.
    let mut create = GitCommand::new(["bundle", "create", "--quiet", &path, name]).in_dir(&repository);
    create.config.push(("pack.threads".to_owned(), "1".to_owned()));
    git.run(create).await?;

    let spec = FileSpec {
        origin: git.spec.origin(),
        name: FILE.to_owned(),
        mode: 0o644,
        uid: 0,
        gid: 0,
        modified: 0,
    };
    let read = SourceError::io("read", &file);
    let content = match tokio::fs::File::open(&file).await {
        Ok(file) => ReaderStream::new(file),
        Err(error) => return Err(read(error)),
    };
    let content = content.map(|piece| piece.map_err(SourceError::io("read", FILE))).boxed();
    Ok(save(&shared.stores, spec, shared.limits.http_bytes, content).await?.tree)
}

async fn rev(git: &Git<'_>, repository: &std::path::Path, name: &str) -> Result<String, SourceError> {
    let command = GitCommand::new(["rev-parse", "--verify", "--end-of-options", name]).in_dir(repository);
    Ok(git.run(command).await?.stdout.trim().to_owned())
}

fn fresh_dir(shared: &Shared) -> Result<TempDir, SourceError> {
    let root = &shared.root;
    std::fs::create_dir_all(root).map_err(SourceError::io("make", root))?;
    let made = SourceError::io("make a repository in", root);
    tempfile::Builder::new().prefix("bundle-").tempdir_in(root).map_err(made)
}

fn missing() -> SourceError {
    reading(std::io::ErrorKind::NotFound.into())
}

fn reading(error: std::io::Error) -> SourceError {
    SourceError::io("read", FILE)(error)
}
