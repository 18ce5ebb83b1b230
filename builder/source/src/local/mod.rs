//! Directories: `local://name`, from a client's session, this machine, or the store.

mod copy;
mod follow;
mod link;
mod reuse;
mod select;
mod session;
mod walk;

use std::{path::Path, sync::Arc};

use futures::future::BoxFuture;
use lapstrake_builder_llb::pb;
use lapstrake_layerstore_oci::{Digest, gojson};
use lapstrake_layerstore_store::Tree;
use lapstrake_session::fsutil::{Compare, Index};

pub(crate) use self::select::Selection;
pub(crate) use self::walk::{Owner, Seen, SelectedTree, open as open_beneath};
use crate::{
    LocalProvider, Material, Source, SourceContext, SourceError, SourceKind,
    attrs::Attrs,
    sources::{Shared, cache_key},
};

/// Which directory, and what of it, as an op says it.
#[derive(Debug, Clone, PartialEq, Eq)]
struct LocalSpec {
    /// The name under which it is offered.
    name: String,
    /// The session that offers it; any of those that wait when there is none.
    session: Option<String>,
    /// Ids under which it may be provided without a session.
    ids: Vec<String>,
    include: Option<Vec<String>>,
    exclude: Option<Vec<String>>,
    follow: Option<Vec<String>>,
    hint: String,
    compare: Compare,
}

impl LocalSpec {
    fn parse(name: &str, op: &pb::SourceOp) -> Result<Self, SourceError> {
        let attrs = Attrs::of(op);
        let session = attrs.text("local.session");
        let unique = attrs.text("local.unique");
        let ids = [unique, session].into_iter().flatten().map(str::to_owned).collect();
        // BuildKit: one session may serve several directories of one name, told apart by a prefix of the session's id.
        let (name, session) = match session.map(|session| session.split_once(':').ok_or(session)) {
            Some(Ok((prefix, id))) => (format!("{prefix}-{name}"), Some(id.to_owned())),
            Some(Err(id)) => (name.to_owned(), Some(id.to_owned())),
            None => (name.to_owned(), None),
        };
        let compare = match attrs.text("local.differ") {
            // BuildKit's default is metadata: then new contents of the old size and time are missed.
            // BuildKit's "none" is to transfer everything; what is the same then is the same file here.
            None | Some("none") => Compare::Content,
            Some("metadata") => Compare::Metadata,
            Some(differ) => return Err(attrs.invalid("local.differ", differ, "neither none nor metadata")),
        };
        attrs.refuse("local.metadatatransfer")?;
        Ok(Self {
            name,
            session,
            ids,
            include: attrs.list("local.includepattern")?,
            exclude: attrs.list("local.excludepatterns")?,
            follow: attrs.list("local.followpaths")?,
            hint: attrs.text("local.sharedkeyhint").unwrap_or_default().to_owned(),
            compare,
        })
    }

    /// What the patterns, without the paths to follow, select.
    fn selection(&self) -> Result<Selection, SourceError> {
        self.selection_with(self.include.clone().unwrap_or_default())
    }

    fn selection_with(&self, include: Vec<String>) -> Result<Selection, SourceError> {
        Selection::new(&include, self.exclude.as_deref().unwrap_or_default())
            .map_err(|source| SourceError::Pattern { origin: self.origin(), source })
    }

    fn origin(&self) -> String {
        format!("local://{}", self.name)
    }

    /// What progress is called, as BuildKit has it.
    fn part(&self) -> String {
        format!("transferring {}:", self.name)
    }
}

/// Opens `local://`.
pub(crate) fn open(
    shared: &Arc<Shared>,
    name: &str,
    op: &pb::SourceOp,
) -> Result<Arc<dyn Source>, SourceError> {
    let spec = LocalSpec::parse(name, op)?;
    // Bad patterns are an error whoever applies them.
    spec.selection()?;
    Ok(Arc::new(LocalSource { shared: Arc::clone(shared), spec: Arc::new(spec) }))
}

struct LocalSource {
    shared: Arc<Shared>,
    spec: Arc<LocalSpec>,
}

impl LocalSource {
    fn provider<'a>(&self, cx: &'a SourceContext) -> Option<&'a LocalProvider> {
        self.spec.ids.iter().find_map(|id| cx.locals.get(id))
    }

    /// BuildKit's key: it names the session and the patterns. What is in the directory is found out by hashing it.
    fn key(&self, cx: &SourceContext) -> Result<Digest, SourceError> {
        #[derive(serde::Serialize)]
        #[serde(rename_all = "PascalCase")]
        struct Key<'a> {
            #[serde(rename = "SessionID")]
            session: &'a str,
            include_patterns: &'a Option<Vec<String>>,
            exclude_patterns: &'a Option<Vec<String>>,
            follow_paths: &'a Option<Vec<String>>,
        }
        let spec = &self.spec;
        let provided = || spec.ids.iter().find(|id| cx.locals.contains_key(*id)).map(String::as_str);
        let session = provided()
            .or(spec.session.as_deref())
            .or_else(|| cx.sessions.first().map(lapstrake_session::SessionId::as_str))
            .ok_or_else(|| SourceError::NoDirectory { origin: spec.origin() })?;
        let key = Key {
            session,
            include_patterns: &spec.include,
            exclude_patterns: &spec.exclude,
            follow_paths: &spec.follow,
        };
        let json = gojson::to_vec(&key).expect("texts and lists of texts are JSON");
        Ok(cache_key(&format!("session:{}:{}", spec.name, Digest::sha256_of(json))))
    }

    async fn fetch(&self, cx: &SourceContext) -> Result<Tree, SourceError> {
        match self.provider(cx) {
            Some(LocalProvider::Tree(tree)) => link::selected(&self.shared, &self.spec, tree, cx).await,
            Some(LocalProvider::Directory(path)) => copy::directory(&self.shared, &self.spec, path, cx).await,
            None => session::transfer(&self.shared, &self.spec, cx).await,
        }
    }
}

impl Source for LocalSource {
    fn kind(&self) -> SourceKind {
        SourceKind::Local
    }

    fn description(&self) -> String {
        format!("local source for {}", self.spec.name)
    }

    fn pin<'a>(&'a self, cx: &'a SourceContext) -> BoxFuture<'a, Result<Digest, SourceError>> {
        Box::pin(async move { self.key(cx) })
    }

    fn material<'a>(&'a self, _: &'a SourceContext) -> BoxFuture<'a, Result<Material, SourceError>> {
        let name = self.spec.name.clone();
        Box::pin(std::future::ready(Ok(Material::Local { name })))
    }

    fn fetch<'a>(&'a self, cx: &'a SourceContext) -> BoxFuture<'a, Result<Tree, SourceError>> {
        Box::pin(self.fetch(cx))
    }
}

/// What a directory was when it was last transferred, as it is remembered: the index of its files and, for a directory of this machine,
/// which files they were there.
#[derive(Default)]
struct Listing {
    index: Index,
    /// Anything else, opaque here.
    extra: Vec<u8>,
}

impl Listing {
    /// Version 1: `index length (8 bytes, little endian), index, extra`.
    fn to_bytes(&self) -> Vec<u8> {
        let index = self.index.to_bytes();
        let mut bytes = (index.len() as u64).to_le_bytes().to_vec();
        bytes.extend(&index);
        bytes.extend(&self.extra);
        bytes
    }

    /// What cannot be read is as good as nothing: everything is transferred.
    fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let (length, rest) = bytes.split_first_chunk::<8>()?;
        let length = usize::try_from(u64::from_le_bytes(*length)).ok()?;
        let (index, extra) = rest.split_at_checked(length)?;
        Some(Self { index: Index::from_bytes(index).ok()?, extra: extra.to_vec() })
    }
}

/// A path as patterns see it. What is no text matches by what it looks like.
fn as_text(path: &Path) -> std::borrow::Cow<'_, str> {
    path.to_string_lossy()
}
