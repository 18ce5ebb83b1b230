//! What an op is for the cache: BuildKit's keys, so that caches can be exchanged with it.
//!
//! The digest of an op's key is taken over JSON, as `solver/llbsolver/ops/*.go` writes it: Go's field order, names and `omitempty`.
//! What must not matter (proxy settings, addresses of extra hosts, ids of cache mounts) is left out there, and so it is here.

mod dialect;
mod json;

use std::sync::Arc;

use lapstrake_layerstore_oci::{Digest, gojson};
use serde_json::{Value, json};

use crate::{clean_path, pb};
use dialect::Dialect;
pub use dialect::Versions;
use json::{Object, copy_action, exec_op, mkdir_action, mkfile_action, rm_action, symlink_action};

/// An op's key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OpKey {
    /// Everything but its inputs that decides what it makes.
    pub digest: Digest,
    /// How each input counts.
    pub deps: Vec<DepKey>,
}

/// The filter of workers by which an op says that its result is to be what Moby's classic builder makes of it: without the mount points of
/// its container, and without a layer where nothing was changed. No BuildKit has such results, so such ops have keys of their own.
pub const CLASSIC_WORKER: &str = "lapstrake.builder==classic";

/// Whether an op is for [`CLASSIC_WORKER`].
pub fn is_classic(op: &pb::Op) -> bool {
    op.constraints.as_ref().is_some_and(|constraints| constraints.filter.iter().any(|f| f == CLASSIC_WORKER))
}

impl OpKey {
    /// The key of the same op for [`CLASSIC_WORKER`].
    #[must_use]
    pub fn in_classic(self) -> Self {
        Self { digest: Digest::sha256_of(format!("{CLASSIC_WORKER} {}", self.digest)), ..self }
    }
}

/// An op's key as some versions of BuildKit make it. The content of inputs counts in all versions alike.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VersionKey {
    /// As [`OpKey::digest`], as text: some versions put there what they should have made a digest of.
    pub name: Arc<str>,
    /// As [`DepKey::selector`], for each input.
    pub selectors: Vec<Option<Digest>>,
    /// Who makes it so.
    pub versions: Versions,
}

/// What BuildKit's versions call an op: today's first, and every version in one of them. Empty for sources, and for what has no key.
pub fn in_versions(op: &pb::Op, inputs: usize) -> Vec<VersionKey> {
    let mut known: Vec<VersionKey> = Vec::new();
    for dialect in Dialect::ALL {
        let Some(key) = in_dialect(op, inputs, dialect) else { return Vec::new() };
        let same = |known: &&mut VersionKey| known.name == key.name && known.selectors == key.selectors;
        match known.iter_mut().find(same) {
            Some(known) => known.versions = known.versions.or(key.versions),
            None => known.push(key),
        }
    }
    known
}

/// What older versions of BuildKit call an op: caches that they made have it under these keys. Empty for what they agree on, for sources, and
/// for what has no key.
pub fn older(op: &pb::Op, inputs: usize) -> Vec<VersionKey> {
    in_versions(op, inputs).into_iter().skip(1).collect()
}

fn in_dialect(op: &pb::Op, inputs: usize, dialect: Dialect) -> Option<VersionKey> {
    if is_classic(op) {
        return None;
    }
    let of_trees = |json: Value| {
        let bytes = gojson::to_vec(&json).expect("a value serialises");
        let name = match dialect.digests_trees() {
            true => Digest::sha256_of(&bytes).as_str().into(),
            false => String::from_utf8_lossy(&bytes).into(),
        };
        (name, vec![None; inputs])
    };
    let of_key = |OpKey { digest, deps }: OpKey| -> (Arc<str>, Vec<Option<Digest>>) {
        (digest.as_str().into(), deps.into_iter().map(|dep| dep.selector).collect())
    };
    let (name, selectors) = match op.op.as_ref()? {
        pb::op::Op::Exec(exec) => of_key(exec_in(exec, op.platform.as_ref(), inputs, dialect).ok()?),
        pb::op::Op::File(file) => of_key(file_in(file, inputs, dialect)),
        pb::op::Op::Merge(merge) => of_trees(merge_json(merge, dialect)),
        pb::op::Op::Diff(diff) => of_trees(diff_json(diff, dialect)),
        pb::op::Op::Source(_) | pb::op::Op::Build(_) => return None,
    };
    Some(VersionKey { name, selectors, versions: dialect.into() })
}

/// How an input counts.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct DepKey {
    /// What part of it counts where it is known by definition.
    pub selector: Option<Digest>,
    /// What of its content may be looked at instead; `None` if content cannot stand for it. An empty list is all of it.
    pub content: Option<Vec<Selector>>,
}

/// A part of an input's content.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Selector {
    /// A path, or a pattern where `wildcard` is set.
    pub path: String,
    /// Whether `path` is a pattern, of which all matches count.
    pub wildcard: bool,
    /// Whether a symlink at the end of the path is followed.
    pub follow_links: bool,
    /// Only what these patterns match.
    pub include_patterns: Vec<String>,
    /// Not what these match.
    pub exclude_patterns: Vec<String>,
    /// Paths that must be there, whatever the patterns say.
    pub required_paths: Vec<String>,
}

impl Selector {
    fn has_wildcard_or_filters(&self) -> bool {
        self.wildcard || !self.include_patterns.is_empty() || !self.exclude_patterns.is_empty()
    }
}

fn digest_of(value: &Value) -> Digest {
    Digest::sha256_of(gojson::to_vec(value).expect("a value serialises"))
}

/// The key of an exec op. `platform` is the op's; the machine's own counts where it has none.
///
/// Errors: what is wrong with a mount.
pub fn exec(op: &pb::ExecOp, platform: Option<&pb::Platform>, inputs: usize) -> Result<OpKey, String> {
    exec_in(op, platform, inputs, Dialect::TODAY)
}

fn exec_in(
    op: &pb::ExecOp,
    platform: Option<&pb::Platform>,
    inputs: usize,
    dialect: Dialect,
) -> Result<OpKey, String> {
    let mut deps = exec_deps(op, inputs)?;
    if !dialect.selects_roots() || !dialect.secrets_have_no_input() {
        deps = with_old_selectors(op, &deps, dialect);
    }
    Ok(OpKey { digest: exec_digest(op, platform, dialect), deps })
}

fn exec_digest(op: &pb::ExecOp, platform: Option<&pb::Platform>, dialect: Dialect) -> Digest {
    let mut op = op.clone();
    if let Some(meta) = &mut op.meta {
        meta.proxy_env = None;
        for host in &mut meta.extra_hosts {
            host.ip.clear();
        }
        meta.remove_mount_stubs_recursive &= dialect.removes_mount_stubs();
    }
    for mount in &mut op.mounts {
        mount.selector.clear();
        let clear = mount
            .cache_opt
            .as_ref()
            .is_some_and(|cache| dialect.clears_cache_options() && !is_default_cache(cache, &mount.dest));
        if let Some(cache) = mount.cache_opt.as_mut().filter(|_| clear) {
            cache.id.clear();
            cache.sharing = 0;
        }
        if is_credential(mount) && !dialect.secrets_have_no_input() {
            mount.input = 0;
        }
        if !dialect.sizes_tmpfs() {
            mount.tmpfs_opt = None;
        }
    }
    // Old versions of BuildKit left mounts out; for the plainest case it stayed so.
    if let [only] = &op.mounts[..]
        && only.dest == "/"
        && !only.readonly
        && only.mount_type() == pb::MountType::Bind
        && only.cache_opt.is_none()
        && only.ssh_opt.is_none()
        && only.secret_opt.is_none()
        && only.result_id.is_empty()
    {
        op.mounts.clear();
    }
    let host = lapstrake_layerstore_oci::Platform::host();
    let mut key = Object::new();
    key.always("Type", "buildkit.exec.v0");
    key.always("Exec", exec_op(&op, dialect));
    match platform {
        Some(platform) => {
            key.always("OS", platform.os.as_str());
            key.always("Arch", platform.architecture.as_str());
            key.text("Variant", &platform.variant);
            key.text("OSVersion", &platform.os_version);
            key.texts("OSFeatures", &platform.os_features);
        }
        None => {
            key.always("OS", host.os.as_str());
            key.always("Arch", host.architecture.as_str());
        }
    }
    digest_of(&key.into())
}

fn is_credential(mount: &pb::Mount) -> bool {
    matches!(mount.mount_type(), pb::MountType::Secret | pb::MountType::Ssh)
}

/// The cache mounts that a Dockerfile makes by default are part of the key for compatibility.
fn is_default_cache(cache: &pb::CacheOpt, dest: &str) -> bool {
    let named_for_dest = cache.id == dest || cache.id.split_once('/').is_some_and(|(_, rest)| rest == dest);
    named_for_dest && cache.sharing == 0
}

fn exec_deps(op: &pb::ExecOp, inputs: usize) -> Result<Vec<DepKey>, String> {
    let mut paths: Vec<Vec<String>> = vec![Vec::new(); inputs];
    let mut by_content = vec![false; inputs];
    for mount in &op.mounts {
        if matches!(mount.mount_type(), pb::MountType::Secret | pb::MountType::Ssh | pb::MountType::Tmpfs)
            || mount.input == -1
        {
            continue;
        }
        let input = usize::try_from(mount.input).ok().filter(|input| *input < inputs);
        let Some(input) = input else { return Err(format!("mount {} of input {}", mount.dest, mount.input)) };
        let path = rooted(&mount.selector);
        // Content may stand for an input only if what was not selected cannot be in what the op makes.
        let safe = mount.output == -1 || mount.readonly || path == "/";
        by_content[input] = match mount.content_cache() {
            pb::MountContentCache::Off => false,
            pb::MountContentCache::On if !safe => {
                return Err(format!("mount {}: its content cannot stand for it in the cache", mount.dest));
            }
            pb::MountContentCache::On => true,
            pb::MountContentCache::Default => safe && mount.dest != "/",
        };
        paths[input].push(path);
    }
    let deps = paths.into_iter().zip(by_content).map(|(paths, by_content)| DepKey {
        selector: (!paths.is_empty()).then(|| Digest::sha256_of(paths.join("\0").as_bytes())),
        content: by_content.then(|| {
            let paths = without_nested(&paths);
            if paths.iter().any(|path| path == "/") {
                return Vec::new();
            }
            paths
                .into_iter()
                .map(|path| Selector { path, follow_links: true, ..Selector::default() })
                .collect()
        }),
    });
    Ok(deps.collect())
}

/// The same inputs with the selectors of an older version: once a mount of all of an input selected nothing, and once every secret selected the root of
/// the first input.
fn with_old_selectors(op: &pb::ExecOp, deps: &[DepKey], dialect: Dialect) -> Vec<DepKey> {
    let first = |mount: &pb::Mount| is_credential(mount) && !dialect.secrets_have_no_input();
    let of_input = |(input, dep): (i64, &DepKey)| {
        let paths: Vec<String> = op
            .mounts
            .iter()
            .filter(|mount| if first(mount) { input == 0 } else { mount.input == input })
            .filter(|mount| dialect.selects_roots() || !mount.selector.is_empty())
            .map(|mount| rooted(&mount.selector))
            .collect();
        let selector = (!paths.is_empty()).then(|| Digest::sha256_of(paths.join("\0").as_bytes()));
        DepKey { selector, content: dep.content.clone() }
    };
    (0..).zip(deps).map(of_input).collect()
}

/// The key of a file op.
pub fn file(op: &pb::FileOp, inputs: usize) -> OpKey {
    file_in(op, inputs, Dialect::TODAY)
}

fn file_in(op: &pb::FileOp, inputs: usize, dialect: Dialect) -> OpKey {
    OpKey { digest: file_digest(op, inputs, dialect), deps: file_deps(op, inputs) }
}

fn file_digest(op: &pb::FileOp, inputs: usize, dialect: Dialect) -> Digest {
    let mut actions = Vec::with_capacity(op.actions.len());
    let mut indexes = Vec::with_capacity(op.actions.len());
    for action in &op.actions {
        indexes.push([action.input, action.secondary_input, action.output]);
        let value = match action.action.as_ref() {
            Some(pb::file_action::Action::Mkdir(mkdir)) => mkdir_action(mkdir, dialect),
            Some(pb::file_action::Action::Mkfile(mkfile)) => mkfile_action(mkfile, dialect),
            Some(pb::file_action::Action::Symlink(symlink)) => symlink_action(symlink, dialect),
            Some(pb::file_action::Action::Rm(rm)) => rm_action(rm),
            Some(pb::file_action::Action::Copy(copy)) => {
                let mut copy = copy.clone();
                if usize::try_from(action.secondary_input).is_ok_and(|input| input < inputs) {
                    copy.src = base(&copy.src);
                }
                copy.always_replace_existing_dest_paths &= dialect.replaces_at_destination();
                copy_action(&copy, dialect)
            }
            None => Value::Null,
        };
        actions.push(gojson::to_vec(&value).expect("a value serialises"));
    }
    let mut key = Object::new();
    key.always("Type", "buildkit.file.v0");
    // A Go slice of byte slices: strings of base64.
    key.always("Actions", actions.iter().map(|action| json!(json::base64(action))).collect::<Vec<_>>());
    if !is_default_indexes(&indexes) && !indexes.is_empty() {
        key.always("indexes", json!(indexes));
    }
    digest_of(&key.into())
}

fn file_deps(op: &pb::FileOp, inputs: usize) -> Vec<DepKey> {
    let mut selectors: Vec<Vec<Selector>> = vec![Vec::new(); inputs];
    // Inputs that are written over count by definition only.
    let mut written = vec![false; inputs];
    for action in &op.actions {
        if let Some(input) = usize::try_from(action.input).ok().and_then(|input| written.get_mut(input)) {
            *input = true;
        }
        match action.action.as_ref() {
            Some(pb::file_action::Action::Mkdir(mkdir)) => select_owner(mkdir.owner.as_ref(), &mut selectors),
            Some(pb::file_action::Action::Mkfile(mkfile)) => {
                select_owner(mkfile.owner.as_ref(), &mut selectors)
            }
            Some(pb::file_action::Action::Copy(copy)) => {
                select_owner(copy.owner.as_ref(), &mut selectors);
                let source = usize::try_from(action.secondary_input).ok().filter(|input| *input < inputs);
                if let Some(source) = source {
                    selectors[source].push(Selector {
                        path: copy.src.clone(),
                        wildcard: copy.allow_wildcard && has_wildcards(&copy.src),
                        follow_links: copy.follow_symlink,
                        include_patterns: copy.include_patterns.clone(),
                        exclude_patterns: copy.exclude_patterns.clone(),
                        required_paths: copy.required_paths.clone(),
                    });
                }
            }
            Some(pb::file_action::Action::Symlink(_) | pb::file_action::Action::Rm(_)) | None => {}
        }
    }
    let deps = selectors.into_iter().zip(written).map(|(selectors, written)| {
        if selectors.is_empty() || written {
            return DepKey::default();
        }
        let mut paths: Vec<&str> = selectors.iter().map(|selector| selector.path.as_str()).collect();
        paths.sort_unstable();
        paths.reverse();
        DepKey {
            selector: Some(Digest::sha256_of(paths.join("\0").as_bytes())),
            content: Some(dedupe(selectors)),
        }
    });
    deps.collect()
}

/// The key of a merge op.
pub fn merge(op: &pb::MergeOp, inputs: usize) -> OpKey {
    tree_key(&merge_json(op, Dialect::TODAY), inputs)
}

fn merge_json(op: &pb::MergeOp, dialect: Dialect) -> Value {
    let list: Vec<Value> = op.inputs.iter().map(|input| json::index(input.input, dialect)).collect();
    let mut merge = Object::new();
    if !list.is_empty() {
        merge.always("inputs", list);
    }
    tree_json("buildkit.merge.v0", "Merge", merge)
}

/// The key of a diff op.
pub fn diff(op: &pb::DiffOp, inputs: usize) -> OpKey {
    tree_key(&diff_json(op, Dialect::TODAY), inputs)
}

fn diff_json(op: &pb::DiffOp, dialect: Dialect) -> Value {
    let mut diff = Object::new();
    if let Some(lower) = &op.lower {
        diff.always("lower", json::index(lower.input, dialect));
    }
    if let Some(upper) = &op.upper {
        diff.always("upper", json::index(upper.input, dialect));
    }
    tree_json("buildkit.diff.v0", "Diff", diff)
}

fn tree_json(kind: &str, field: &'static str, op: Object) -> Value {
    let mut key = Object::new();
    key.always("Type", kind);
    key.always(field, Value::from(op));
    key.into()
}

fn tree_key(json: &Value, inputs: usize) -> OpKey {
    OpKey { digest: digest_of(json), deps: vec![DepKey::default(); inputs] }
}

/// Names are looked up in these files of an input, so they count.
fn select_owner(owner: Option<&pb::ChownOpt>, selectors: &mut [Vec<Selector>]) {
    let Some(owner) = owner else { return };
    for (who, path) in [(&owner.user, "/etc/passwd"), (&owner.group, "/etc/group")] {
        if let Some(pb::user_opt::User::ByName(name)) = who.as_ref().and_then(|who| who.user.as_ref())
            && let Some(input) = usize::try_from(name.input).ok().and_then(|input| selectors.get_mut(input))
        {
            input.push(Selector { path: path.to_owned(), follow_links: true, ..Selector::default() });
        }
    }
}

fn has_wildcards(path: &str) -> bool {
    let mut chars = path.chars();
    while let Some(c) = chars.next() {
        match c {
            '\\' => {
                chars.next();
            }
            '*' | '?' | '[' => return true,
            _ => {}
        }
    }
    false
}

/// Go's `path.Base`.
fn base(path: &str) -> String {
    if path.is_empty() {
        return ".".to_owned();
    }
    let trimmed = path.trim_end_matches('/');
    if trimmed.is_empty() {
        return "/".to_owned();
    }
    trimmed.rsplit('/').next().unwrap_or(trimmed).to_owned()
}

/// Go's `path.Join("/", path)`.
fn rooted(path: &str) -> String {
    clean_path(&format!("/{path}"))
}

/// Paths without those that lie below another, sorted.
fn without_nested(paths: &[String]) -> Vec<String> {
    if paths.len() <= 1 {
        return paths.to_vec();
    }
    let below = |path: &str, other: &str| {
        let slash = if other.ends_with('/') { other.to_owned() } else { format!("{other}/") };
        path != other && path.starts_with(&slash)
    };
    let mut kept: Vec<String> =
        paths.iter().filter(|path| !paths.iter().any(|other| below(path, other))).cloned().collect();
    kept.sort_unstable();
    kept.dedup();
    kept
}

fn dedupe(selectors: Vec<Selector>) -> Vec<Selector> {
    let (filtered, plain): (Vec<_>, Vec<_>) =
        selectors.into_iter().partition(Selector::has_wildcard_or_filters);
    let mut kept = Vec::new();
    for follow_links in [false, true] {
        let paths: Vec<String> = plain
            .iter()
            .filter(|selector| selector.follow_links == follow_links)
            .map(|selector| selector.path.clone())
            .collect();
        let paths = without_nested(&paths).into_iter();
        kept.extend(paths.map(|path| Selector { path, follow_links, ..Selector::default() }));
    }
    kept.extend(filtered);
    kept.sort_by(|a, b| a.path.cmp(&b.path));
    kept
}

/// Whether actions are chained in the usual way: then BuildKit leaves their indexes out, for compatibility.
fn is_default_indexes(indexes: &[[i64; 3]]) -> bool {
    let count = i64::try_from(indexes.len()).unwrap_or(i64::MAX);
    !indexes.is_empty()
        && indexes.iter().zip(0..).all(|([input, secondary, output], i)| {
            let chained = if i == 0 { 0 } else { count + i - 1 };
            *input == chained && matches!(secondary, -1 | 1) && *output == if i == count - 1 { 0 } else { -1 }
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_exec_key_is_buildkits_json() {
        let op = pb::ExecOp {
            meta: Some(pb::Meta {
                args: vec!["/bin/sh".into(), "-c".into(), "echo a && echo b".into()],
                env: vec!["PATH=/bin".into()],
                cwd: "/".into(),
                proxy_env: Some(pb::ProxyEnv { http_proxy: "http://proxy".into(), ..Default::default() }),
                ..Default::default()
            }),
            mounts: vec![pb::Mount { dest: "/".into(), ..Default::default() }],
            ..Default::default()
        };
        let platform =
            pb::Platform { os: "linux".into(), architecture: "amd64".into(), ..Default::default() };
        let json = r#"{"Type":"buildkit.exec.v0","Exec":{"meta":{"args":["/bin/sh","-c","echo a \u0026\u0026 echo b"],"env":["PATH=/bin"],"cwd":"/"}},"OS":"linux","Arch":"amd64"}"#;
        let key = exec(&op, Some(&platform), 1).unwrap();
        assert_eq!(key.digest, Digest::sha256_of(json.as_bytes()));
        assert_eq!(key.deps[0].content, None, "the root file system counts by definition");
        assert_eq!(key.deps[0].selector, Some(Digest::sha256_of(b"/")));
    }

    #[test]
    fn older_versions_select_no_root_and_leave_stubs_of_mounts() {
        let exec = pb::ExecOp {
            meta: Some(pb::Meta {
                args: vec!["a".into()],
                remove_mount_stubs_recursive: true,
                ..Default::default()
            }),
            mounts: vec![pb::Mount { dest: "/".into(), ..Default::default() }],
            ..Default::default()
        };
        let op = pb::Op {
            op: Some(pb::op::Op::Exec(exec.clone())),
            platform: Some(pb::Platform {
                os: "linux".into(),
                architecture: "amd64".into(),
                ..Default::default()
            }),
            ..Default::default()
        };
        let json = |stubs: &str| {
            let json = format!(
                r#"{{"Type":"buildkit.exec.v0","Exec":{{"meta":{{"args":["a"]{stubs}}}}},"OS":"linux","Arch":"amd64"}}"#
            );
            Digest::sha256_of(json)
        };
        let key = |digest: Digest, selector: Option<&str>, versions: &[Dialect]| VersionKey {
            name: digest.as_str().into(),
            selectors: vec![selector.map(Digest::sha256_of)],
            versions: versions.iter().fold(Versions::NONE, |all, one| all.or((*one).into())),
        };
        let digest = json(r#","removeMountStubsRecursive":true"#);
        let since_0_13 = [Dialect::V0_18, Dialect::V0_17, Dialect::V0_15, Dialect::V0_14, Dialect::V0_13];
        let today = key(digest.clone(), Some("/"), &since_0_13);
        let until_0_12 = key(digest, None, &[Dialect::V0_11]);
        let until_0_10 = key(json(""), None, &[Dialect::V0_10, Dialect::V0_8]);
        assert_eq!(in_versions(&op, 1), [today, until_0_12.clone(), until_0_10.clone()]);
        assert_eq!(older(&op, 1), [until_0_12, until_0_10]);
    }

    #[test]
    fn older_versions_name_users_otherwise() {
        let by_id = pb::UserOpt { user: Some(pb::user_opt::User::ById(7)) };
        let mkdir = pb::FileActionMkDir {
            path: "/d".into(),
            owner: Some(pb::ChownOpt { user: Some(by_id), group: None }),
            ..Default::default()
        };
        let file = pb::FileOp {
            actions: vec![pb::FileAction {
                input: 0,
                secondary_input: -1,
                output: 0,
                action: Some(pb::file_action::Action::Mkdir(mkdir)),
            }],
        };
        let op = pb::Op { op: Some(pb::op::Op::File(file)), ..Default::default() };
        let key = |field: &str| {
            let action = format!(r#"{{"path":"/d","owner":{{"user":{{"User":{{"{field}":7}}}}}}}}"#);
            let action = json::base64(action.as_bytes());
            let digest =
                Digest::sha256_of(format!(r#"{{"Type":"buildkit.file.v0","Actions":["{action}"]}}"#));
            (digest.as_str().into(), vec![None])
        };
        let older = older(&op, 1).into_iter().map(|key| (key.name, key.selectors));
        assert_eq!(older.collect::<Vec<_>>(), [key("ByID"), key("byID")]);
    }

    #[test]
    fn older_versions_name_merges_by_their_json() {
        let inputs = (0..2).map(|input| pb::MergeInput { input }).collect();
        let op = pb::Op { op: Some(pb::op::Op::Merge(pb::MergeOp { inputs })), ..Default::default() };
        let json = r#"{"Type":"buildkit.merge.v0","Merge":{"inputs":[{"input":0},{"input":1}]}}"#;
        let keys = in_versions(&op, 2);
        let until_0_12 = keys.last().unwrap();
        assert_eq!((&*until_0_12.name, &until_0_12.selectors), (json, &vec![None, None]));
        assert_eq!(keys[keys.len() - 2].name, Digest::sha256_of(json).as_str().into());
        assert!(!until_0_12.versions.and(Versions::SINCE_0_11).is_empty());
    }

    #[test]
    fn a_copy_counts_by_the_content_of_its_source() {
        let copy = pb::FileActionCopy {
            src: "/src/*.c".into(),
            dest: "/".into(),
            allow_wildcard: true,
            ..Default::default()
        };
        let op = pb::FileOp {
            actions: vec![pb::FileAction {
                input: 0,
                secondary_input: 1,
                output: 0,
                action: Some(pb::file_action::Action::Copy(copy)),
            }],
        };
        let key = file(&op, 2);
        assert_eq!(key.deps[0], DepKey::default());
        let content = key.deps[1].content.clone().unwrap();
        assert_eq!(content.len(), 1);
        assert!(content[0].wildcard);
        // Another directory with the same files gives the same key.
        let mut moved = op.clone();
        if let Some(pb::file_action::Action::Copy(copy)) = &mut moved.actions[0].action {
            copy.src = "/elsewhere/*.c".into();
        }
        assert_eq!(file(&moved, 2).digest, key.digest);
    }

    #[test]
    fn nested_paths_are_left_out() {
        let paths = ["/foo", "/foo/bar", "/foobar", "/a"].map(str::to_owned);
        assert_eq!(without_nested(&paths), ["/a", "/foo", "/foobar"]);
    }
}
