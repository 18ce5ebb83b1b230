//! One bare repository per remote, and what is asked of the remote.
//!
//! It is a directory of the build cache, and so listed, measured and pruned as a cache mount is:
//!
//! ```text
//! <directory of "git:<sha256 of the URL>-<object format>">/repository/     every fetched commit has a ref refs/lapstrake/<commit>
//! ```
//!
//! A crash leaves at most a half-made repository (made again: it is renamed into place when it is whole), lock files (removed: one process at a time
//! works on a repository), and packs that git itself made durable before it named them.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

use lapstrake_builder_cache::{BuildCache, CacheMount};
use lapstrake_layerstore_oci::Digest;

use super::{
    Git, GitSpec,
    program::{GitCommand, GitFailure, GitOutput},
    url::{is_commit, is_reference},
};
use crate::SourceError;

/// What a source is, found out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Pinned {
    /// The reference's whole name, or the commit that was asked for.
    pub(crate) reference: String,
    /// What the reference names: a commit, or an annotated tag.
    pub(crate) object: String,
    /// The commit that an annotated tag names.
    pub(crate) peeled: Option<String>,
}

impl Pinned {
    /// A commit's whole name says all.
    pub(super) fn without_asking(spec: &GitSpec) -> Option<Pinned> {
        let commit = |object: &str, reference: &str| Pinned {
            reference: reference.to_owned(),
            object: object.to_owned(),
            peeled: None,
        };
        if is_commit(&spec.reference) {
            return Some(commit(&spec.reference, &spec.reference));
        }
        // A bundle's references are asked for by their names only.
        let is_told = spec.fetch_by_commit || (spec.bundle.is_some() && spec.reference.is_empty());
        let checksum = spec.checksum.as_deref().filter(|_| is_told)?;
        let reference = if spec.reference.is_empty() { checksum } else { &spec.reference };
        Some(commit(checksum, reference))
    }

    /// Asks the remote.
    pub(super) async fn ask(git: &Git<'_>) -> Result<Pinned, SourceError> {
        let spec = git.spec;
        let mut args = vec!["ls-remote".to_owned()];
        if spec.reference.is_empty() {
            args.extend(["--symref", "--", git.url(), "HEAD"].map(str::to_owned));
        } else {
            args.extend(["--", git.url()].map(str::to_owned));
            // git matches from the end: `main` is also `refs/heads/main`.
            args.extend([spec.reference.clone(), format!("{}^{{}}", spec.reference)]);
        }
        let command = git.asking(args);
        let listing = git.run(command).await?.stdout;
        let pinned = if spec.reference.is_empty() {
            default_branch(&listing)
        } else {
            choose(&spec.reference, &listing)
        };
        let pinned = pinned.ok_or_else(|| SourceError::GitNotFound {
            origin: spec.remote.to_string(),
            what: match spec.reference.as_str() {
                "" => "default branch".to_owned(),
                // Servers list no commits, and give them by their whole names only.
                commit if commit.len() >= 7 && commit.bytes().all(|byte| byte.is_ascii_hexdigit()) => {
                    format!("ref {commit} (a commit is named by all of its digits)")
                }
                reference => format!("ref {reference}"),
            },
        })?;
        Ok(pinned)
    }

    /// The commit must be the one that the op wants.
    pub(super) fn check(&self, spec: &GitSpec) -> Result<(), SourceError> {
        let Some(checksum) = &spec.checksum else { return Ok(()) };
        let fits = |object: &String| object.starts_with(checksum);
        if fits(&self.object) || self.peeled.as_ref().is_some_and(fits) {
            return Ok(());
        }
        let or = self.peeled.as_ref().map(|peeled| format!(" or {peeled}")).unwrap_or_default();
        Err(SourceError::Refused {
            origin: spec.origin(),
            why: format!("expected checksum to match {checksum}, got {}{or}", self.object),
        })
    }
}

/// Lines of a listing: an object and its name.
fn lines(listing: &str) -> impl Iterator<Item = (&str, &str)> {
    listing.lines().filter_map(|line| line.split_once('\t')).filter(|(object, _)| is_commit(object))
}

fn default_branch(listing: &str) -> Option<Pinned> {
    let branch = listing.lines().find_map(|line| line.strip_prefix("ref: ")?.strip_suffix("\tHEAD"))?;
    let (object, _) = lines(listing).find(|(_, name)| *name == "HEAD")?;
    let branch = Some(branch).filter(|name| name.starts_with("refs/heads/") && is_reference(name))?;
    Some(Pinned { reference: branch.to_owned(), object: object.to_owned(), peeled: None })
}

/// Which of the listed references is meant: the very name, then a branch, then a tag (BuildKit's order, and git-checkout's).
fn choose(reference: &str, listing: &str) -> Option<Pinned> {
    let find =
        |name: &str| lines(listing).find(|(_, listed)| *listed == name).map(|(object, _)| object.to_owned());
    let under = |prefix: &str| format!("{prefix}{}", reference.strip_prefix(prefix).unwrap_or(reference));
    let (exact, head, tag) = (under("refs/"), under("refs/heads/"), under("refs/tags/"));
    for name in [exact, head] {
        // Not `refs/tags/x`, whose key is the commit's. That of `tags/x`, which BuildKit takes for no tag, is the tag's.
        if let Some(object) = find(&name).filter(|_| name != tag) {
            return Some(Pinned { reference: name, object, peeled: None });
        }
    }
    let object = find(&tag)?;
    let peeled = find(&format!("{tag}^{{}}"));
    Some(Pinned { reference: tag, object, peeled })
}

/// The bare repository of a remote, for one user at a time.
pub(super) struct Repository {
    pub(super) dir: PathBuf,
    _directory: CacheMount,
}

impl Repository {
    /// The repository for the remote, made if it is not there.
    pub(super) async fn open(
        cache: &Arc<BuildCache>,
        git: &Git<'_>,
        pinned: &Pinned,
    ) -> Result<Self, SourceError> {
        let format = object_format(&pinned.object);
        let id = format!("git:{}-{format}", Digest::sha256_of(&git.spec.remote.url).hex());
        let description = format!("shared git repo for {}", git.spec.remote);
        let directory = Arc::clone(cache).directory(&id, description).await?;
        let root = directory.directory().expect("it began empty").to_owned();
        let dir = root.join("repository");
        if dir.join("HEAD").exists() {
            let there = dir.clone();
            SourceError::blocking(move || remove_leftovers(&there)).await?;
            return Ok(Self { dir, _directory: directory });
        }
        let fresh = root.join("new");
        for rubbish in [&fresh, &dir] {
            match std::fs::remove_dir_all(rubbish) {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                    return Err(SourceError::io("remove", rubbish)(error));
                }
                _ => {}
            }
        }
        git.make_bare(&fresh, &pinned.object).await?;
        // Whole: what is there under its name is a repository.
        std::fs::rename(&fresh, &dir).map_err(SourceError::io("rename", &fresh))?;
        Ok(Self { dir, _directory: directory })
    }

    /// Brings the pinned object here. With more packs than `limit`, the repository is made smaller.
    pub(super) async fn fetch(
        &self,
        git: &Git<'_>,
        pinned: &Pinned,
        limit: usize,
    ) -> Result<(), SourceError> {
        if !self.has(git, &pinned.object).await? {
            let fetched = self.fetch_now(git, pinned).await;
            let dir = self.dir.clone();
            if fetched.is_err() {
                // Now, and not when the repository is next used: a server can send a lot before it fails.
                SourceError::blocking(move || remove_leftovers(&dir)).await?;
            }
            fetched?;
            self.tidy(git, &pinned.object, limit).await;
        }
        if git.spec.checksum.is_none() {
            return Ok(());
        }
        // What the object's name alone cannot tell: which commit it is if it is a tag.
        let peeled = self.commit(git, pinned).await?;
        Pinned { peeled: Some(peeled), ..pinned.clone() }.check(git.spec)
    }

    async fn fetch_now(&self, git: &Git<'_>, pinned: &Pinned) -> Result<(), SourceError> {
        let failed = |failure: &GitFailure| git.failed("fetch", failure);
        let object = &pinned.object;
        let kept = format!("refs/lapstrake/{object}");
        // Only that state: all of it, and nothing before it.
        let wanted =
            if is_commit(&pinned.reference) || git.spec.fetch_by_commit { object } else { &pinned.reference };
        let first = self.fetch_one(git, wanted, &kept).await;
        if first.is_ok() && self.has(git, object).await? {
            return self.keep(git, object, &kept).await;
        }
        // It has moved since it was pinned. Some servers give what they do not list.
        if wanted != object
            && self.fetch_one(git, object, &kept).await.is_ok()
            && self.has(git, object).await?
        {
            return self.keep(git, object, &kept).await;
        }
        // The others: then it is somewhere in the history.
        let mut options = vec!["--tags", "--force"];
        if self.dir.join("shallow").exists() {
            options.push("--unshallow");
        }
        let all = ["+refs/heads/*:refs/remotes/origin/*".to_owned()];
        let whole = git.tell(self.fetch_command(git, &options, &all)).await;
        match (whole, first) {
            (Ok(_), _) if self.has(git, object).await? => self.keep(git, object, &kept).await,
            (_, Err(failure)) | (Err(failure), _) => Err(failed(&failure)),
            (Ok(_), Ok(_)) => {
                Err(SourceError::GitNotFound { origin: git.spec.origin(), what: format!("commit {object}") })
            }
        }
    }

    /// Fetches something by a name that the remote knows: without what was before it, where the remote can do that.
    async fn fetch_one(&self, git: &Git<'_>, wanted: &str, kept: &str) -> Result<GitOutput, GitFailure> {
        let refspec = [format!("+{wanted}:{kept}")];
        match git.tell(self.fetch_command(git, &["--depth=1", "--no-tags"], &refspec)).await {
            // An old server, or one of plain files.
            Err(GitFailure::Failed { output, .. })
                if ["--depth", "shallow"].iter().any(|word| output.stderr.contains(word)) =>
            {
                git.tell(self.fetch_command(git, &["--no-tags"], &refspec)).await
            }
            result => result,
        }
    }

    /// Keeps a repository that is fetched into again and again from growing for ever: once there are many packs, the commits that were not
    /// among the last few go, and what stays becomes one pack. Each of git's commands leaves a whole repository, wherever it is killed.
    async fn tidy(&self, git: &Git<'_>, object: &str, limit: usize) {
        let packs = entries(&self.dir.join("objects/pack"), |name| name.ends_with(".pack"));
        if !packs.is_ok_and(|packs| packs.len() > limit) {
            return;
        }
        let work = async {
            let run = |args: &[&str]| {
                let command = GitCommand::new(args.iter().copied()).in_dir(&self.dir);
                async move { git.program.run(command).await }
            };
            let newest = ["for-each-ref", "--sort=-creatordate", "--format=%(refname)", "refs/lapstrake/"];
            let kept = run(&newest).await?.stdout;
            for old in kept.lines().skip(limit / 2).filter(|name| !name.ends_with(object)) {
                run(&["update-ref", "-d", "--no-deref", old]).await?;
            }
            run(&["pack-refs", "--all", "--prune"]).await?;
            run(&["repack", "-a", "-d", "--quiet"]).await?;
            run(&["prune", "--expire=now"]).await
        };
        if let Err(error) = work.await {
            // The build has what it wants, and the next fetch tries again.
            tracing::warn!(repository = %self.dir.display(), %error, "not made smaller");
        }
    }

    fn fetch_command(&self, git: &Git<'_>, options: &[&str], refspecs: &[String]) -> GitCommand {
        let mut args: Vec<String> =
            ["fetch", "--no-write-fetch-head", "--no-auto-maintenance", "--no-recurse-submodules"]
                .map(str::to_owned)
                .to_vec();
        args.extend(options.iter().map(|option| (*option).to_owned()));
        args.extend(["--".to_owned(), git.url().to_owned()]);
        args.extend(refspecs.iter().cloned());
        let mut command = git.asking(args).in_dir(&self.dir);
        // As a pack, which comes to be at once or not at all, and is durable before anything names it.
        let config = [("fetch.unpackLimit", "1"), ("core.fsync", "committed")];
        command.config.extend(config.map(|(key, value)| (key.to_owned(), value.to_owned())));
        command
    }

    /// Gives the object a name, so that it stays and the next fetch says that it is here.
    async fn keep(&self, git: &Git<'_>, object: &str, name: &str) -> Result<(), SourceError> {
        git.run(GitCommand::new(["update-ref", "--no-deref", name, object]).in_dir(&self.dir)).await.map(drop)
    }

    /// Whether the object is here with all that belongs to it. That it is here itself says nothing: a fetch that was cut off may leave a commit without
    /// its files. Git gives an object a name when it has seen that nothing is missing, and what a name leads to is whole.
    async fn has(&self, git: &Git<'_>, object: &str) -> Result<bool, SourceError> {
        let names = format!("refs/lapstrake/{object}");
        let named = ["for-each-ref", "--count=1", "--format=%(objectname)", &names];
        if git.run(GitCommand::new(named).in_dir(&self.dir)).await?.stdout.trim() == object {
            return Ok(true);
        }
        // As git itself looks (`connected.c`): does anything that it leads to end before what has a name?
        let whole = ["rev-list", "--objects", "--quiet", object, "--not", "--all"];
        match git.attempt(GitCommand::new(whole).in_dir(&self.dir)).await {
            Ok(_) => Ok(true),
            Err(GitFailure::Failed { .. }) => Ok(false),
            Err(failure) => Err(git.failed("rev-list", &failure)),
        }
    }

    /// An object of this kind, as git keeps it.
    pub(super) async fn object(&self, git: &Git<'_>, kind: &str, name: &str) -> Result<Vec<u8>, SourceError> {
        let command = GitCommand::new(["cat-file", kind, name]).in_dir(&self.dir);
        let text = git.run(command).await?.stdout;
        // What git says is read as text, and another encoding has been lost.
        if text.contains(char::REPLACEMENT_CHARACTER) {
            let why = format!("the {kind} {name} is not UTF-8, and cannot be given away unchanged");
            return Err(SourceError::Refused { origin: git.spec.origin(), why });
        }
        Ok(text.into_bytes())
    }

    /// The commit that the object is or, being a tag, names.
    pub(super) async fn commit(&self, git: &Git<'_>, pinned: &Pinned) -> Result<String, SourceError> {
        let name = format!("{}^{{commit}}", pinned.object);
        let command = GitCommand::new(["rev-parse", "--verify", "--end-of-options", &name]).in_dir(&self.dir);
        let commit = git.run(command).await?.stdout.trim().to_owned();
        if is_commit(&commit) {
            return Ok(commit);
        }
        Err(SourceError::GitNotFound { origin: git.spec.origin(), what: format!("commit {commit:?}") })
    }
}

/// Which hash names the objects.
pub(super) fn object_format(object: &str) -> &'static str {
    if object.len() == 64 { "sha256" } else { "sha1" }
}

/// Removes what a killed daemon left below `root`. Before any work begins; blocks.
pub(crate) fn sweep(root: &Path) {
    let Ok(entries) = std::fs::read_dir(root) else { return };
    for path in entries.flatten().map(|entry| entry.path()) {
        if let Err(error) = std::fs::remove_dir_all(&path) {
            tracing::warn!(path = %path.display(), %error, "not removed");
        }
    }
}

/// Removes what a killed git left: locks, and half of what it was being sent. Nobody else works on the repository. Blocks.
fn remove_leftovers(dir: &Path) -> Result<(), SourceError> {
    let mut rubbish: Vec<PathBuf> =
        ["shallow.lock", "packed-refs.lock", "config.lock", "HEAD.lock"].map(|name| dir.join(name)).into();
    // Refs that one commit is kept by, packs, and (a directory each) loose objects.
    for (place, is_rubbish) in [
        ("refs/lapstrake", ends_with_lock as fn(&str) -> bool),
        ("objects", is_temporary),
        ("objects/pack", is_temporary),
    ] {
        rubbish.extend(entries(&dir.join(place), is_rubbish)?);
    }
    for loose in entries(&dir.join("objects"), |name| name.len() == 2)? {
        rubbish.extend(entries(&loose, is_temporary)?);
    }
    for path in rubbish {
        let removed = match std::fs::symlink_metadata(&path) {
            Ok(metadata) if metadata.is_dir() => std::fs::remove_dir_all(&path),
            Ok(_) => std::fs::remove_file(&path),
            Err(error) => Err(error),
        };
        match removed {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                return Err(SourceError::io("remove", &path)(error));
            }
            _ => {}
        }
    }
    Ok(())
}

fn ends_with_lock(name: &str) -> bool {
    name.ends_with(".lock")
}

/// How git names what is not whole yet: packs, objects, and directories that it unpacks into.
fn is_temporary(name: &str) -> bool {
    ["tmp_", ".tmp-", "tmp_objdir-", "incoming-"].iter().any(|prefix| name.starts_with(prefix))
        || ends_with_lock(name)
}

/// Paths in a directory whose names are such; none where it is not there.
fn entries(dir: &Path, wanted: impl Fn(&str) -> bool) -> Result<Vec<PathBuf>, SourceError> {
    let listed = match std::fs::read_dir(dir) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        listed => listed.map_err(SourceError::io("list", dir))?,
    };
    let mut found = Vec::new();
    for entry in listed {
        let entry = entry.map_err(SourceError::io("list", dir))?;
        if entry.file_name().to_str().is_some_and(&wanted) {
            found.push(entry.path());
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sha(digit: char) -> String {
        digit.to_string().repeat(40)
    }

    #[test]
    fn a_branch_comes_before_a_tag_and_the_very_name_before_both() {
        let listing = format!(
            "{}\trefs/heads/x\n{}\trefs/tags/x\n{}\trefs/tags/x^{{}}\n{}\trefs/heads/a/x\n",
            sha('1'),
            sha('2'),
            sha('3'),
            sha('4')
        );
        let of = |reference: &str| choose(reference, &listing).map(|p| (p.reference, p.object, p.peeled));
        let found = |name: &str, object: char, peeled: Option<char>| {
            Some((name.to_owned(), sha(object), peeled.map(sha)))
        };
        assert_eq!(of("x"), found("refs/heads/x", '1', None));
        assert_eq!(of("heads/x"), found("refs/heads/x", '1', None));
        assert_eq!(of("refs/tags/x"), found("refs/tags/x", '2', Some('3')));
        assert_eq!(of("tags/x"), found("refs/tags/x", '2', None));
        assert_eq!(of("a/x"), found("refs/heads/a/x", '4', None));
        assert_eq!(of("y"), None);
        assert_eq!(choose("x", "nonsense\trefs/heads/x\n"), None);
    }

    #[test]
    fn the_default_branch_is_heads() {
        let listing = format!("ref: refs/heads/trunk\tHEAD\n{}\tHEAD\n", sha('5'));
        assert_eq!(default_branch(&listing).map(|p| p.reference), Some("refs/heads/trunk".to_owned()));
        for bad in
            [format!("{}\tHEAD\n", sha('5')), format!("ref: refs/heads/-x y\tHEAD\n{}\tHEAD\n", sha('5'))]
        {
            assert_eq!(default_branch(&bad), None);
        }
    }
}
