//! Where file systems come from.

use std::collections::BTreeMap;

use lapstrake_layerstore_oci::gojson;
use lapstrake_layerstore_oci::{Digest, Platform, Reference};

use super::{GraphBuilder, NodeOp, OpOptions, State};
use crate::caps;

#[derive(Debug, Clone)]
pub(crate) struct SourceNode {
    pub(super) identifier: String,
    pub(super) attrs: BTreeMap<String, String>,
}

/// Whether an image is looked for in the local store or in its registry.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum ResolveMode {
    /// The registry, or the local store if that is all there is.
    #[default]
    Default,
    /// The registry, always.
    ForcePull,
    /// The local store, if it has the image.
    PreferLocal,
}

impl ResolveMode {
    /// The word for it in attributes.
    pub fn as_str(self) -> &'static str {
        match self {
            ResolveMode::Default => "default",
            ResolveMode::ForcePull => "pull",
            ResolveMode::PreferLocal => "local",
        }
    }
}

/// An image in a registry.
#[derive(Debug, Clone, PartialEq)]
pub struct ImageSource {
    /// Which image; without tag and digest, `latest` is meant.
    pub reference: Reference,
    /// Where to look.
    pub resolve_mode: ResolveMode,
    /// Use only so many layers.
    pub layer_limit: Option<u32>,
    /// What it must be, if not named by digest.
    pub checksum: Option<Digest>,
}

/// A directory on the client.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct LocalSource {
    /// The name under which the client offers it.
    pub name: String,
    /// The session it is in; without one, `unique_id` must be set.
    pub session_id: Option<String>,
    /// Makes the vertex differ from that of any other client.
    pub unique_id: Option<String>,
    /// Patterns of what to send.
    pub include_patterns: Vec<String>,
    /// Patterns of what not to send.
    pub exclude_patterns: Vec<String>,
    /// Paths to send, symbolic links followed.
    pub follow_paths: Vec<String>,
    /// What transfers to reuse.
    pub shared_key_hint: Option<String>,
    /// Whether files are compared before they are sent: `none` or `metadata`.
    pub differ: Option<&'static str>,
}

/// A file behind an URL.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct HttpSource {
    /// The URL.
    pub url: String,
    /// What the file is called in the resulting file system.
    pub filename: Option<String>,
    /// What it must be.
    pub checksum: Option<Digest>,
    /// Its permission bits.
    pub mode: Option<u32>,
    /// Its owner.
    pub uid: u32,
    /// Its group.
    pub gid: u32,
}

/// A tree in a git repository.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct GitSource {
    /// The URL that git is given.
    pub remote: String,
    /// Host with user and path, by which the repository is known whatever the protocol.
    pub identity: String,
    /// Branch, tag or commit.
    pub reference: String,
    /// A directory in the tree.
    pub subdir: String,
    /// Whether to keep `.git`.
    pub keep_git_dir: bool,
    /// The commit that it must be.
    pub checksum: String,
    /// Whether to leave submodules out.
    pub skip_submodules: bool,
    /// `commit` to set files' times to the commit's; empty for the time of checkout.
    pub mtime: String,
    /// Whether `checksum` is fetched without asking what the reference is now.
    pub fetch_by_commit: bool,
    /// For `ssh` remotes: the agent to use and what is known of the host.
    pub ssh: Option<GitSsh>,
}

/// How a git repository is reached by ssh.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct GitSsh {
    /// The agent's id; empty for `default`.
    pub agent: String,
    /// Lines of a `known_hosts` file; empty if nothing is known.
    pub known_hosts: String,
}

/// An image in an OCI layout on the client.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct OciLayoutSource {
    /// `name@digest`.
    pub reference: String,
    /// The session it is in.
    pub session_id: String,
    /// The name of the store.
    pub store_id: String,
    /// Use only so many layers.
    pub layer_limit: Option<u32>,
}

impl GraphBuilder {
    /// An image's file system.
    pub fn image(&mut self, source: ImageSource, mut options: OpOptions) -> State {
        let mut attrs = BTreeMap::new();
        options.metadata.add_cap(caps::SOURCE_IMAGE);
        if source.resolve_mode != ResolveMode::Default {
            attrs.insert("image.resolvemode".to_owned(), source.resolve_mode.as_str().to_owned());
            if source.resolve_mode == ResolveMode::ForcePull {
                options.metadata.add_cap(caps::SOURCE_IMAGE_RESOLVE_MODE);
            }
        }
        if let Some(limit) = source.layer_limit {
            attrs.insert("image.layerlimit".to_owned(), limit.to_string());
            options.metadata.add_cap(caps::SOURCE_IMAGE_LAYER_LIMIT);
        }
        if let Some(checksum) = source.checksum {
            attrs.insert("image.checksum".to_owned(), checksum.to_string());
            options.metadata.add_cap(caps::SOURCE_IMAGE_CHECKSUM);
        }
        self.source(format!("docker-image://{}", source.reference.with_default_tag()), attrs, options)
    }

    /// A directory of the client.
    pub fn local(&mut self, source: LocalSource, mut options: OpOptions) -> State {
        let mut attrs = BTreeMap::new();
        let mut add = |key: &str, value: Option<String>, cap: &'static str| {
            if let Some(value) = value {
                attrs.insert(key.to_owned(), value);
                options.metadata.add_cap(cap);
            }
        };
        let session = source.session_id.filter(|id| !id.is_empty());
        let unique = source.unique_id.filter(|_| session.is_none());
        add("local.session", session, caps::SOURCE_LOCAL_SESSION_ID);
        add("local.unique", unique, caps::SOURCE_LOCAL_UNIQUE);
        add("local.includepattern", json_list(&source.include_patterns), caps::SOURCE_LOCAL_INCLUDE_PATTERNS);
        add("local.followpaths", json_list(&source.follow_paths), caps::SOURCE_LOCAL_FOLLOW_PATHS);
        add(
            "local.excludepatterns",
            json_list(&source.exclude_patterns),
            caps::SOURCE_LOCAL_EXCLUDE_PATTERNS,
        );
        let hint = source.shared_key_hint.filter(|hint| !hint.is_empty());
        add("local.sharedkeyhint", hint, caps::SOURCE_LOCAL_SHARED_KEY_HINT);
        if let Some(differ) = source.differ {
            // BuildKit's frontend asks for this one without requiring it.
            attrs.insert("local.differ".to_owned(), differ.to_owned());
        }
        options.metadata.add_cap(caps::SOURCE_LOCAL);
        self.source(format!("local://{}", source.name), attrs, options)
    }

    /// A file fetched from an URL.
    pub fn http(&mut self, source: HttpSource, mut options: OpOptions) -> State {
        let mut attrs = BTreeMap::new();
        if let Some(checksum) = source.checksum {
            attrs.insert("http.checksum".to_owned(), checksum.to_string());
            options.metadata.add_cap(caps::SOURCE_HTTP_CHECKSUM);
        }
        if let Some(filename) = source.filename.filter(|name| !name.is_empty()) {
            attrs.insert("http.filename".to_owned(), filename);
        }
        if let Some(mode) = source.mode.filter(|mode| *mode != 0) {
            attrs.insert("http.perm".to_owned(), format!("0{mode:o}"));
            options.metadata.add_cap(caps::SOURCE_HTTP_PERM);
        }
        for (key, id) in [("http.uid", source.uid), ("http.gid", source.gid)] {
            if id != 0 {
                attrs.insert(key.to_owned(), id.to_string());
                options.metadata.add_cap(caps::SOURCE_HTTP_UID_GID);
            }
        }
        options.metadata.add_cap(caps::SOURCE_HTTP);
        self.source(source.url, attrs, options)
    }

    /// A tree of a git repository.
    pub fn git(&mut self, source: GitSource, mut options: OpOptions) -> State {
        let mut attrs = BTreeMap::new();
        let mut add = |key: &str, value: &str, cap: Option<&'static str>| {
            if !value.is_empty() {
                attrs.insert(key.to_owned(), value.to_owned());
                cap.into_iter().for_each(|cap| options.metadata.add_cap(cap));
            }
        };
        let flag = |on: bool| if on { "true" } else { "" };
        add("git.keepgitdir", flag(source.keep_git_dir), Some(caps::SOURCE_GIT_KEEP_DIR));
        add("git.fullurl", &source.remote, Some(caps::SOURCE_GIT_FULL_URL));
        // The names of the secrets that hold credentials; BuildKit always says them.
        add("git.authtokensecret", "GIT_AUTH_TOKEN", None);
        add("git.authheadersecret", "GIT_AUTH_HEADER", None);
        add("git.checksum", &source.checksum, Some(caps::SOURCE_GIT_CHECKSUM));
        add("git.skipsubmodules", flag(source.skip_submodules), Some(caps::SOURCE_GIT_SKIP_SUBMODULES));
        add("git.mtime", &source.mtime, Some(caps::SOURCE_GIT_MTIME));
        add("git.fetchbycommit", flag(source.fetch_by_commit), Some(caps::SOURCE_GIT_FETCH_BY_COMMIT));
        if let Some(ssh) = &source.ssh {
            add("git.knownsshhosts", &ssh.known_hosts, None);
            let agent = if ssh.agent.is_empty() { "default" } else { &ssh.agent };
            add("git.mountsshsock", agent, Some(caps::SOURCE_GIT_MOUNT_SSH_SOCK));
            options.metadata.add_cap(caps::SOURCE_GIT_KNOWN_SSH_HOSTS);
        }
        options.metadata.add_cap(caps::SOURCE_GIT);

        let mut identifier = format!("git://{}", source.identity);
        if !source.reference.is_empty() || !source.subdir.is_empty() {
            identifier.push('#');
            identifier.push_str(&source.reference);
            if !source.subdir.is_empty() {
                identifier.push(':');
                identifier.push_str(&source.subdir);
            }
        }
        self.source(identifier, attrs, options)
    }

    /// An image of an OCI layout.
    pub fn oci_layout(&mut self, source: OciLayoutSource, mut options: OpOptions) -> State {
        let mut attrs = BTreeMap::new();
        for (key, value) in [("oci.session", source.session_id), ("oci.store", source.store_id)] {
            if !value.is_empty() {
                attrs.insert(key.to_owned(), value);
            }
        }
        if let Some(limit) = source.layer_limit {
            attrs.insert("oci.layerlimit".to_owned(), limit.to_string());
        }
        options.metadata.add_cap(caps::SOURCE_OCI_LAYOUT);
        self.source(format!("oci-layout://{}", source.reference), attrs, options)
    }

    fn source(&mut self, identifier: String, attrs: BTreeMap<String, String>, options: OpOptions) -> State {
        let platform: Option<Platform> = options.platform.clone();
        let output = self.push(NodeOp::Source(SourceNode { identifier, attrs }), options);
        State::of(Some(output), platform.as_ref())
    }
}

fn json_list(list: &[String]) -> Option<String> {
    if list.is_empty() {
        return None;
    }
    let json = gojson::to_vec(list).expect("strings are always JSON");
    Some(String::from_utf8(json).expect("JSON is UTF-8"))
}
