//! The capabilities that a vertex can ask of a solver, by BuildKit's names, and whether they are honoured here. They are metadata: no digest depends on
//! them.
//!
//! Clients ask for the list first (`LLBBridge.Ping`), and use what is in it; what a definition asks for nonetheless is compared with it once more.
#![allow(missing_docs, reason = "each constant is exactly what its name says")]

/// A capability that BuildKit 0.32 knows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Cap {
    /// Its name on the wire.
    pub id: &'static str,
    /// Why it is not honoured; `None` where it is.
    pub without: Option<&'static str>,
}

/// A capability that a vertex needs and that is not here. In BuildKit's words.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CapError {
    /// Nobody knows it.
    #[error("unknown API capability {0}")]
    Unknown(String),
    /// It is known, and not honoured.
    #[error("requested experimental feature {id}  has been disabled on the build server: {why}")]
    Disabled {
        /// Its name.
        id: &'static str,
        /// Why.
        why: &'static str,
    },
}

/// Whether a capability is honoured.
///
/// # Errors
/// Why not.
pub fn supports(id: &str) -> Result<(), CapError> {
    match ALL.iter().find(|cap| cap.id == id) {
        None => Err(CapError::Unknown(id.to_owned())),
        Some(Cap { without: None, .. }) => Ok(()),
        Some(Cap { id, without: Some(why) }) => Err(CapError::Disabled { id, why }),
    }
}

/// Writes each capability once: its constant, and its row in the table.
macro_rules! caps {
    ($($(#[$doc:meta])* $name:ident = $id:literal $(, without: $why:literal)?;)*) => {
        $($(#[$doc])* pub const $name: &str = $id;)*

        /// All of them, as BuildKit lists them.
        pub const ALL: &[Cap] = &[$(Cap { id: $id, without: caps!(@why $($why)?) },)*];
    };
    (@why) => { None };
    (@why $why:literal) => { Some($why) };
}

caps! {
    SOURCE_IMAGE = "source.image";
    SOURCE_IMAGE_RESOLVE_MODE = "source.image.resolvemode";
    SOURCE_IMAGE_LAYER_LIMIT = "source.image.layerlimit";
    SOURCE_IMAGE_CHECKSUM = "source.image.checksum";
    SOURCE_LOCAL = "source.local";
    SOURCE_LOCAL_UNIQUE = "source.local.unique";
    SOURCE_LOCAL_SESSION_ID = "source.local.sessionid";
    SOURCE_LOCAL_INCLUDE_PATTERNS = "source.local.includepatterns";
    SOURCE_LOCAL_FOLLOW_PATHS = "source.local.followpaths";
    SOURCE_LOCAL_EXCLUDE_PATTERNS = "source.local.excludepatterns";
    SOURCE_LOCAL_SHARED_KEY_HINT = "source.local.sharedkeyhint";
    SOURCE_LOCAL_DIFFER = "source.local.differ";
    SOURCE_METADATA_TRANSFER = "source.local.metadatatransfer", without: "files are transferred with their content";
    SOURCE_GIT = "source.git";
    SOURCE_GIT_KEEP_DIR = "source.git.keepgitdir";
    SOURCE_GIT_FULL_URL = "source.git.fullurl";
    SOURCE_GIT_HTTP_AUTH = "source.git.httpauth";
    SOURCE_GIT_KNOWN_SSH_HOSTS = "source.git.knownsshhosts";
    SOURCE_GIT_MOUNT_SSH_SOCK = "source.git.mountsshsock";
    SOURCE_GIT_SUBDIR = "source.git.subdir";
    SOURCE_GIT_CHECKSUM = "source.git.checksum";
    SOURCE_GIT_SKIP_SUBMODULES = "source.git.skipsubmodules";
    SOURCE_GIT_SIGNATURE_VERIFY = "source.git.signatureverify";
    SOURCE_GIT_MTIME = "source.git.mtime";
    SOURCE_GIT_FETCH_BY_COMMIT = "source.git.fetchbycommit";
    SOURCE_GIT_BUNDLE = "source.git.bundle";
    SOURCE_GIT_CHECKOUT_BUNDLE = "source.git.checkoutbundle";
    SOURCE_HTTP = "source.http";
    SOURCE_HTTP_AUTH = "source.http.auth";
    SOURCE_HTTP_CHECKSUM = "source.http.checksum";
    SOURCE_HTTP_PERM = "source.http.perm";
    /// With BuildKit's historical spelling.
    SOURCE_HTTP_UID_GID = "soruce.http.uidgid";
    SOURCE_HTTP_HEADER = "source.http.header";
    SOURCE_HTTP_SIGNATURE_VERIFY = "source.http.signatureverify";
    SOURCE_IMAGE_BLOB = "source.imageblob";
    SOURCE_OCI_LAYOUT = "source.ocilayout";
    BUILD_OP_FILE_NAME = "source.buildop.llbfilename";
    EXEC_META_BASE = "exec.meta.base";
    EXEC_META_CGROUP_PARENT = "exec.meta.cgroup.parent";
    EXEC_META_NETWORK = "exec.meta.network";
    EXEC_META_NETWORK_PROXY = "exec.meta.network.proxy", without: "requests of steps are not recorded by a proxy";
    EXEC_META_PROXY = "exec.meta.proxyenv";
    EXEC_META_SECURITY = "exec.meta.security";
    EXEC_META_SECURITY_DEVICES = "exec.meta.security.devices.v1";
    EXEC_META_SETS_DEFAULT_PATH = "exec.meta.setsdefaultpath";
    EXEC_META_ULIMIT = "exec.meta.ulimit";
    EXEC_META_CDI = "exec.meta.cdi";
    EXEC_META_REMOVE_MOUNT_STUBS = "exec.meta.removemountstubs.recursive";
    EXEC_META_LINUX_RESOURCES = "exec.meta.linux.resources", without: "limits come with the build, not with a step";
    EXEC_MOUNT_BIND = "exec.mount.bind";
    EXEC_MOUNT_BIND_NO_OUTPUT = "exec.mount.bind.readwrite-nooutput";
    EXEC_MOUNT_CACHE = "exec.mount.cache";
    EXEC_MOUNT_CACHE_SHARING = "exec.mount.cache.sharing";
    EXEC_MOUNT_SELECTOR = "exec.mount.selector";
    EXEC_MOUNT_TMPFS = "exec.mount.tmpfs";
    EXEC_MOUNT_TMPFS_SIZE = "exec.mount.tmpfs.size";
    EXEC_MOUNT_SECRET = "exec.mount.secret";
    EXEC_MOUNT_SSH = "exec.mount.ssh";
    EXEC_MOUNT_CONTENT_CACHE = "exec.mount.cache.content";
    EXEC_CGROUPS_MOUNTED = "exec.cgroup";
    EXEC_SECRET_ENV = "exec.secretenv";
    EXEC_VALID_EXIT_CODE = "exec.validexitcode";
    FILE_BASE = "file.base";
    FILE_RM_WILDCARD = "file.rm.wildcard";
    FILE_COPY_PATTERNS = "file.copy.includeexcludepatterns";
    FILE_COPY_REQUIRED_PATHS = "file.copy.requiredpaths";
    FILE_RM_NO_FOLLOW = "file.rm.nofollowsymlink";
    FILE_COPY_REPLACE = "file.copy.alwaysreplaceexistingdestpaths";
    FILE_COPY_MODE_STRING = "file.copy.modestring";
    FILE_SYMLINK = "file.symlink.create";
    CONSTRAINTS = "constraints";
    PLATFORM = "platform";
    META_IGNORE_CACHE = "meta.ignorecache";
    META_DESCRIPTION = "meta.description";
    META_EXPORT_CACHE = "meta.exportcache";
    CACHE_GHA = "cache.gha", without: "caches of GitHub Actions are neither read nor written";
    CACHE_S3 = "cache.s3", without: "caches in S3 are neither read nor written";
    CACHE_AZBLOB = "cache.azblob", without: "caches in Azure are neither read nor written";
    MERGE_OP = "mergeop";
    DIFF_OP = "diffop";
    PASSTHROUGH_OP = "passthroughop";
    EXPORTER_ANNOTATIONS = "exporter.image.annotations";
    EXPORTER_ATTESTATIONS = "exporter.image.attestations";
    EXPORTER_EPOCH = "exporter.sourcedateepoch";
    EXPORTER_MULTIPLE = "exporter.multiple";
    EXPORTER_SESSION = "exporter.session";
    SOURCE_POLICY = "source.policy";
    SOURCE_POLICY_SESSION = "source.policy.session";
    GC_FREE_SPACE = "gc.freespacefilter";
    HISTORY_FILTER = "history.filter";
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_capability_is_honoured_or_refused_by_name() {
        assert_eq!(supports(EXEC_META_BASE), Ok(()));
        assert_eq!(supports(SOURCE_HTTP_UID_GID), Ok(()));
        let told = |id| supports(id).unwrap_err().to_string();
        assert_eq!(told("exec.meta.magic"), "unknown API capability exec.meta.magic");
        assert_eq!(
            told(CACHE_S3),
            "requested experimental feature cache.s3  has been disabled on the build server: \
             caches in S3 are neither read nor written"
        );
    }

    #[test]
    fn no_capability_is_listed_twice() {
        let mut ids: Vec<&str> = ALL.iter().map(|cap| cap.id).collect();
        ids.sort_unstable();
        ids.dedup();
        assert_eq!(ids.len(), ALL.len());
    }
}
