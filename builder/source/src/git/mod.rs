//! Trees of git repositories: `git://host/path#reference:directory`.
//!
//! ```text
//!   remote: the server, or a bundle of it
//!   pin    ls-remote ──► commit                      (none for a commit's whole name)
//!   fetch  commit ──► bare repository per remote ──► checkout into a draft ──► Tree
//!          commit ──► its history ──► a bundle as a file ──► Tree
//! ```

mod access;
mod bundle;
mod checkout;
mod program;
mod repository;
mod url;

use std::{ffi::OsString, path::Path, sync::Arc};

use futures::future::BoxFuture;
use lapstrake_builder_cache::RecordKind;
use lapstrake_builder_llb::pb;
use lapstrake_builder_progress::Stream;
use lapstrake_layerstore_oci::Digest;
use lapstrake_layerstore_store::Tree;

pub(crate) use self::repository::{Pinned, sweep};
use self::{
    access::Access,
    bundle::Staged,
    program::{GitCommand, GitFailure, GitOutput, GitProgram, SystemGit},
    repository::{Repository, object_format},
    url::{Remote, is_commit, is_reference, split_fragment},
};
use crate::{
    CommitObjects, Material, Source, SourceContext, SourceError, SourceFacts, SourceKind,
    attrs::{Attrs, shown},
    blob::BlobSpec,
    http::MAX_REDIRECTS,
    signature::{Demands, verify_object},
    sources::{Shared, cache_key},
};

/// Which tree, as an op says it.
#[derive(Debug, Clone, PartialEq)]
struct GitSpec {
    remote: Remote,
    /// Branch, tag or commit; the default branch when empty.
    reference: String,
    /// Relative; the whole tree when empty.
    subdir: String,
    /// The commit, or how it begins; hexadecimal.
    checksum: Option<String>,
    keep_git_dir: bool,
    skip_submodules: bool,
    /// Fetch the checksum's commit without asking what the reference is.
    fetch_by_commit: bool,
    /// Files are as old as the commit.
    commit_times: bool,
    token_secret: Option<String>,
    header_secret: Option<String>,
    ssh_agent: Option<String>,
    known_hosts: Option<String>,
    signature: Option<GitSignature>,
    /// What takes the remote's place.
    bundle: Option<BlobSpec>,
    /// A bundle is wanted, and not files.
    as_bundle: bool,
}

/// By whom a commit must be signed, or the tag that names it.
#[derive(Debug, Clone, PartialEq)]
struct GitSignature {
    /// Armored OpenPGP certificates, or SSH keys.
    keys: String,
    demands: Demands,
    /// The commit's signature is not enough.
    tag_only: bool,
    /// The tag's signature does not count.
    commit_only: bool,
}

impl GitSignature {
    fn parse(attrs: &Attrs<'_>) -> Result<Option<Self>, SourceError> {
        let keys = attrs.text("git.sig.pubkey");
        let signature = Self {
            keys: keys.unwrap_or_default().to_owned(),
            demands: Demands { unexpired_key: attrs.flag("git.sig.rejectexpired")? },
            tag_only: attrs.flag("git.sig.requiresignedtag")?,
            commit_only: attrs.flag("git.sig.ignoresignedtag")?,
        };
        // Whoever asks for anything of a signature asks for one.
        let Self { demands, tag_only, commit_only, .. } = &signature;
        let is_asked = keys.is_some() || demands.unexpired_key || *tag_only || *commit_only;
        Ok(is_asked.then_some(signature))
    }

    fn verify(&self, objects: &CommitObjects) -> Result<(), String> {
        let by_tag = match &objects.tag {
            Some(tag) if !self.commit_only => Some(verify_object(tag, &self.keys, self.demands)),
            _ => None,
        };
        match by_tag {
            Some(Ok(())) => Ok(()),
            Some(Err(why)) if self.tag_only => Err(why),
            None if self.tag_only => Err("signed tag required but no signed tag found".to_owned()),
            _ => verify_object(&objects.commit, &self.keys, self.demands),
        }
    }
}

impl GitSpec {
    fn parse(rest: &str, op: &pb::SourceOp) -> Result<Self, SourceError> {
        let bad = |why: &str| SourceError::Identifier { origin: shown(&op.identifier), why: why.to_owned() };
        let (remote, mut reference, subdir) = split_fragment(rest);
        let attrs = Attrs::of(op);
        let remote = attrs.text("git.fullurl").unwrap_or(&remote);
        let remote = Remote::parse(remote).map_err(bad)?;
        let checksum = match attrs.text("git.checksum") {
            Some(text) if text.len() <= 64 && text.bytes().all(|b| b.is_ascii_hexdigit()) => {
                Some(text.to_ascii_lowercase())
            }
            Some(text) => return Err(attrs.invalid("git.checksum", text, "expected hex commit hash")),
            None => None,
        };
        if !is_reference(&reference) {
            return Err(bad(&format!("invalid git ref {reference:?}")));
        }
        if subdir.contains('\0') {
            return Err(bad("invalid directory"));
        }
        let fetch_by_commit = attrs.flag("git.fetchbycommit")?;
        if fetch_by_commit && !is_commit(&reference) {
            let full = checksum.as_deref().is_some_and(is_commit);
            if !full {
                return Err(bad("fetch-by-commit requires a full commit SHA checksum"));
            }
            // As the listing of references would name it, so that both ways have one key.
            if !reference.is_empty() && !reference.starts_with("refs/") {
                reference.insert_str(0, "refs/heads/");
            }
        }
        if let (true, Some(checksum)) = (is_commit(&reference), &checksum)
            && !reference.starts_with(checksum)
        {
            return Err(bad(&format!("expected checksum to match {checksum}, got {reference}")));
        }
        let commit_times = match attrs.text("git.mtime") {
            None | Some("checkout") => false,
            Some("commit") => true,
            Some(other) => return Err(attrs.invalid("git.mtime", other, "neither checkout nor commit")),
        };
        let secret = |text: Option<&str>| text.map(str::to_owned);
        let spec = Self {
            remote,
            reference,
            subdir,
            checksum,
            keep_git_dir: attrs.flag("git.keepgitdir")?,
            skip_submodules: attrs.flag("git.skipsubmodules")?,
            fetch_by_commit,
            commit_times,
            token_secret: secret(attrs.text("git.authtokensecret")),
            header_secret: secret(attrs.text("git.authheadersecret")),
            ssh_agent: secret(attrs.text("git.mountsshsock")),
            known_hosts: secret(attrs.text("git.knownsshhosts")),
            signature: GitSignature::parse(&attrs)?,
            bundle: bundle::parse(&attrs)?,
            as_bundle: attrs.flag("git.checkoutbundle")?,
        };
        if spec.as_bundle && spec.keep_git_dir {
            return Err(bad("git.checkoutbundle is incompatible with git.keepgitdir"));
        }
        if spec.as_bundle && !spec.subdir.is_empty() {
            return Err(bad("git.checkoutbundle is incompatible with git.subdir"));
        }
        let is_whole = |commit: &Option<String>| commit.as_deref().is_some_and(is_commit);
        if spec.bundle.is_some() && spec.reference.is_empty() && !is_whole(&spec.checksum) {
            return Err(bad("a git bundle without a reference requires a full commit SHA checksum"));
        }
        Ok(spec)
    }

    /// What it is called in errors.
    fn origin(&self) -> String {
        match self.reference.as_str() {
            "" => self.remote.to_string(),
            reference => format!("{}#{reference}", self.remote),
        }
    }

    /// BuildKit's key (`source/git`, `shaToCacheKey`).
    fn key(&self, commit: &str, reference: &str) -> String {
        let mut key = commit.to_owned();
        if self.keep_git_dir {
            key.push_str(".git");
            if !reference.is_empty() {
                key.push('#');
                key.push_str(reference);
            }
        }
        if !self.subdir.is_empty() {
            key.push(':');
            key.push_str(&self.subdir);
        }
        if self.skip_submodules {
            key.push_str("(skip-submodules)");
        }
        if self.commit_times {
            key.push_str("(mtime=commit)");
        }
        if self.as_bundle {
            key.push_str("(bundle)");
            // Which BuildKit forgets: the commit has that name in it.
            key.push('#');
            key.push_str(reference);
        }
        key
    }
}

/// The name of a repository's tree for policies, as BuildKit's `GitIdentifier.String` has it: without how it is reached, and as whom.
pub(crate) fn canonical(rest: &str, op: &pb::SourceOp) -> Option<String> {
    let (remote, reference, subdir) = split_fragment(rest);
    let remote = op.attrs.get("git.fullurl").filter(|url| !url.is_empty()).unwrap_or(&remote);
    let place = Remote::parse(remote).ok()?.place();
    Some(match (reference.as_str(), subdir.as_str()) {
        ("", "") => format!("git://{place}"),
        (reference, "") => format!("git://{place}#{reference}"),
        (reference, subdir) => format!("git://{place}#{reference}:{subdir}"),
    })
}

/// Opens `git://`.
pub(crate) fn open(
    shared: &Arc<Shared>,
    rest: &str,
    op: &pb::SourceOp,
) -> Result<Arc<dyn Source>, SourceError> {
    let spec = GitSpec::parse(rest, op)?;
    let limits = &shared.limits;
    let program = Arc::new(SystemGit {
        program: "git".into(),
        patience: limits.git_command,
        stall: limits.git_stall,
        spare: limits.git_spare,
        memory: limits.git_memory,
    });
    Ok(Arc::new(GitSource {
        shared: Arc::clone(shared),
        spec,
        program,
        found: tokio::sync::Mutex::default(),
        staged: tokio::sync::OnceCell::new(),
    }))
}

struct GitSource {
    shared: Arc<Shared>,
    spec: GitSpec,
    program: Arc<dyn GitProgram>,
    /// What `pin` found: `fetch` gets that and nothing else.
    found: tokio::sync::Mutex<Option<Pinned>>,
    /// The bundle that takes the remote's place, once it is here.
    staged: tokio::sync::OnceCell<Staged>,
}

impl GitSource {
    async fn pinned(&self, cx: &SourceContext) -> Result<Pinned, SourceError> {
        let mut kept = self.found.lock().await;
        if let Some(found) = &*kept {
            return Ok(found.clone());
        }
        let found = match Pinned::without_asking(&self.spec) {
            Some(found) => found,
            None => self.ask(cx).await?,
        };
        found.check(&self.spec)?;
        if let Some(signature) = &self.spec.signature {
            let objects = cx.or_canceled(self.objects(cx, &found)).await??;
            let unsigned = |why| SourceError::Unsigned { origin: self.spec.origin(), why };
            signature.verify(&objects).map_err(unsigned)?;
        }
        Ok(kept.insert(found).clone())
    }

    /// What the remote says, once for a build: its steps see one state of a branch.
    async fn ask(&self, cx: &SourceContext) -> Result<Pinned, SourceError> {
        let place = self.spec.bundle.as_ref().map_or_else(|| self.spec.remote.url.clone(), BlobSpec::origin);
        let key = format!(":git-pin:{place}#{}", self.spec.reference);
        let _turn = cx.or_canceled(self.shared.turns.take(&key)).await?;
        if let Some(found) = self.shared.pins.recall(cx, &key) {
            return Ok(found);
        }
        let access = cx.or_canceled(self.access(cx)).await??;
        let found = cx.or_canceled(Pinned::ask(&self.git(cx, &access))).await??;
        self.shared.pins.keep(cx, &key, &found, &self.shared.sessions);
        Ok(found)
    }

    async fn access(&self, cx: &SourceContext) -> Result<Access, SourceError> {
        let Some(blob) = &self.spec.bundle else {
            return Access::find(&self.shared, &self.spec, cx).await;
        };
        // Nobody else is asked.
        let nobody = Access::default();
        let git = self.git(cx, &nobody);
        let staged = self.staged.get_or_try_init(|| Staged::get(&self.shared, &git, blob, cx)).await?;
        Ok(Access::to_repository_here(staged.url()))
    }

    fn git<'a>(&'a self, cx: &'a SourceContext, access: &'a Access) -> Git<'a> {
        Git { spec: &self.spec, program: &*self.program, access, cx }
    }

    fn key(&self, pinned: &Pinned) -> String {
        // The commit that a tag leads to, for more matches; unless the tag itself is to be seen in the repository.
        let commit = match &pinned.peeled {
            Some(commit) if !self.spec.keep_git_dir && !self.spec.as_bundle => commit,
            _ => &pinned.object,
        };
        self.spec.key(commit, &pinned.reference)
    }

    /// The repository, with what was found in it.
    async fn fetched(&self, git: &Git<'_>, pinned: &Pinned) -> Result<Repository, SourceError> {
        // One process at a time writes to a repository: it is lent to one at a time.
        let repository = Repository::open(&self.shared.cache, git, pinned).await?;
        repository.fetch(git, pinned, self.shared.limits.git_packs).await?;
        Ok(repository)
    }

    async fn objects(&self, cx: &SourceContext, pinned: &Pinned) -> Result<CommitObjects, SourceError> {
        let access = self.access(cx).await?;
        let git = self.git(cx, &access);
        let repository = self.fetched(&git, pinned).await?;
        let commit = repository.commit(&git, pinned).await?;
        let tagged = (commit != pinned.object).then(|| commit.clone());
        let tag = match &tagged {
            Some(_) => Some(repository.object(&git, "tag", &pinned.object).await?),
            None => None,
        };
        Ok(CommitObjects { tagged, commit: repository.object(&git, "commit", &commit).await?, tag })
    }

    async fn get(&self, cx: &SourceContext) -> Result<Tree, SourceError> {
        let pinned = self.pinned(cx).await?;
        // With the remote: relative submodules depend on it.
        let remote = Digest::sha256_of(&self.spec.remote.url);
        let memory = format!(":git:{remote}:{}", self.key(&pinned));
        let _turn = cx.or_canceled(self.shared.turns.take(&memory)).await?;
        let (shared, key) = (Arc::clone(&self.shared), memory.clone());
        let kept = SourceError::blocking(move || shared.cache.previous_context(&key)).await?;
        if let Some(kept) = kept {
            return Ok(kept.tree);
        }
        let work = async {
            let access = self.access(cx).await?;
            let git = self.git(cx, &access);
            if self.spec.as_bundle {
                return bundle::write(&self.shared, &git, &pinned).await;
            }
            let repository = self.fetched(&git, &pinned).await?;
            checkout::checkout(&self.shared, &git, &repository, &pinned).await
        };
        let tree = cx.or_canceled(work).await??;
        let description = self.description();
        let (shared, made) = (Arc::clone(&self.shared), tree.clone());
        SourceError::blocking(move || {
            // First, so that it counts as what it is and not as a client's directory.
            shared.cache.record(&made, RecordKind::SourceGitCheckout, &description)?;
            shared.cache.remember_context(&memory, &made, &[], &description)
        })
        .await?;
        Ok(tree)
    }
}

impl Source for GitSource {
    fn kind(&self) -> SourceKind {
        SourceKind::Git
    }

    fn description(&self) -> String {
        format!("git snapshot for {}#{}", self.spec.remote, self.spec.reference)
    }

    fn pin<'a>(&'a self, cx: &'a SourceContext) -> BoxFuture<'a, Result<Digest, SourceError>> {
        Box::pin(async move { Ok(cache_key(&self.key(&self.pinned(cx).await?))) })
    }

    fn facts<'a>(&'a self, cx: &'a SourceContext) -> BoxFuture<'a, Result<SourceFacts, SourceError>> {
        Box::pin(async move {
            let Pinned { reference, object, peeled } = self.pinned(cx).await?;
            Ok(SourceFacts::Commit { object, reference, commit: peeled })
        })
    }

    fn commit_objects<'a>(
        &'a self,
        cx: &'a SourceContext,
    ) -> BoxFuture<'a, Result<Option<CommitObjects>, SourceError>> {
        Box::pin(async move {
            let pinned = self.pinned(cx).await?;
            cx.or_canceled(self.objects(cx, &pinned)).await?.map(Some)
        })
    }

    fn material<'a>(&'a self, cx: &'a SourceContext) -> BoxFuture<'a, Result<Material, SourceError>> {
        Box::pin(async move {
            let Pinned { object, .. } = self.pinned(cx).await?;
            let spec = &self.spec;
            let url = match spec.reference.as_str() {
                "" => spec.remote.masked(),
                reference => format!("{}#{reference}", spec.remote.masked()),
            };
            let secrets = [&spec.token_secret, &spec.header_secret].into_iter().flatten().cloned();
            Ok(Material::Git {
                url,
                commit: object,
                secrets: secrets.collect(),
                ssh_agent: spec.ssh_agent.clone(),
                bundle: spec.bundle.as_ref().map(BlobSpec::material),
            })
        })
    }

    fn fetch<'a>(&'a self, cx: &'a SourceContext) -> BoxFuture<'a, Result<Tree, SourceError>> {
        Box::pin(self.get(cx))
    }
}

/// Git, for one source and those who wait for it.
struct Git<'a> {
    spec: &'a GitSpec,
    program: &'a dyn GitProgram,
    access: &'a Access,
    cx: &'a SourceContext,
}

impl Git<'_> {
    /// Where to fetch from.
    fn url(&self) -> &str {
        self.access.instead.as_deref().unwrap_or(&self.spec.remote.url)
    }

    /// A command that asks whatever is at [`Self::url`].
    fn asking<I: IntoIterator<Item = A>, A: Into<OsString>>(&self, args: I) -> GitCommand {
        GitCommand { from_here: self.access.instead.is_some(), ..GitCommand::new(args) }
    }

    /// Makes an empty bare repository, in a directory that is made for it, for objects of the kind that `object` is of.
    async fn make_bare(&self, directory: &Path, object: &str) -> Result<(), SourceError> {
        std::fs::create_dir(directory).map_err(SourceError::io("make", directory))?;
        let init = ["init", "--quiet", "--bare", "--object-format", object_format(object)];
        self.run(GitCommand::new(init).in_dir(directory)).await.map(drop)
    }

    /// Runs git with what gives access to the remote.
    async fn run(&self, command: GitCommand) -> Result<GitOutput, SourceError> {
        let name = command.name();
        self.attempt(command).await.map_err(|failure| self.failed(&name, &failure))
    }

    /// The same, for somebody who knows what to do about a failure.
    async fn attempt(&self, command: GitCommand) -> Result<GitOutput, GitFailure> {
        for _ in 0..MAX_REDIRECTS {
            let mut command = command.clone();
            command.config.extend(self.access.config());
            command.ssh = self.access.ssh.clone();
            let failure = match self.program.run(command).await {
                Ok(output) => return Ok(output),
                Err(failure) => failure,
            };
            let Some(url) = failure.redirected() else { return Err(failure) };
            if !self.access.follow(url).await {
                return Err(failure);
            }
        }
        Err(GitFailure::Redirects)
    }

    /// Runs git and shows its output.
    async fn tell(&self, command: GitCommand) -> Result<GitOutput, GitFailure> {
        let output = self.attempt(command).await?;
        for (stream, text) in [(Stream::Stdout, &output.stdout), (Stream::Stderr, &output.stderr)] {
            if !text.is_empty() {
                self.cx.vertex.log(stream, text.clone().into_bytes());
            }
        }
        Ok(output)
    }

    fn failed(&self, command: &str, failure: &GitFailure) -> SourceError {
        SourceError::Git {
            origin: self.spec.origin(),
            command: command.to_owned(),
            message: failure.to_string(),
        }
    }
}
