//! The key of what runs a process.

use lapstrake_layerstore_oci::{Digest, Platform};

use super::{
    DepKey, Dialect, OpKey, Selector, digest_of,
    json::{Object, exec_op},
    selected, without_nested,
};
use crate::{clean_path, pb};

/// The key of an exec op. `platform` is the op's; the machine's own counts where it has none.
///
/// Errors: what is wrong with a mount.
pub fn exec(op: &pb::ExecOp, platform: Option<&pb::Platform>, inputs: usize) -> Result<OpKey, String> {
    exec_in(op, platform, inputs, Dialect::TODAY)
}

pub(super) fn exec_in(
    op: &pb::ExecOp,
    platform: Option<&pb::Platform>,
    inputs: usize,
    dialect: Dialect,
) -> Result<OpKey, String> {
    let mut deps = deps(op, inputs)?;
    if !dialect.selects_roots() || !dialect.secrets_have_no_input() {
        deps = with_old_selectors(op, &deps, dialect);
    }
    Ok(OpKey { digest: digest(op, platform, dialect), deps })
}

fn digest(op: &pb::ExecOp, platform: Option<&pb::Platform>, dialect: Dialect) -> Digest {
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
    let host = Platform::host();
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

fn deps(op: &pb::ExecOp, inputs: usize) -> Result<Vec<DepKey>, String> {
    let mut paths: Vec<Vec<String>> = vec![Vec::new(); inputs];
    let mut by_content = vec![false; inputs];
    for mount in &op.mounts {
        if is_credential(mount) || mount.mount_type() == pb::MountType::Tmpfs || mount.input == -1 {
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
        selector: selected(&paths),
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
        let selector = selected(&paths);
        DepKey { selector, content: dep.content.clone() }
    };
    (0..).zip(deps).map(of_input).collect()
}

/// Go's `path.Join("/", path)`.
fn rooted(path: &str) -> String {
    clean_path(&format!("/{path}"))
}
