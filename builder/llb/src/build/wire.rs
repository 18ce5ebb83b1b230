//! The parts of ops that need nothing of the rest of the graph, in their wire form.

use super::exec::{ExecNode, MountKind};
use super::file::{CopyMode, FileAction, Owner, OwnerId};
use crate::{Metadata, caps, clean_path, join_path, pb};

pub(super) fn secrets(exec: &ExecNode, ssh_targets: &[String], message: &mut pb::ExecOp) {
    for secret in &exec.options.secrets {
        if let Some(name) = &secret.env {
            message.secretenv.push(pb::SecretEnv {
                id: secret.id.clone(),
                name: name.clone(),
                optional: secret.optional,
            });
        }
        if let Some(target) = &secret.target {
            message.mounts.push(pb::Mount {
                input: -1,
                dest: target.clone(),
                mount_type: pb::MountType::Secret.into(),
                secret_opt: Some(pb::SecretOpt {
                    id: secret.id.clone(),
                    uid: secret.uid,
                    gid: secret.gid,
                    mode: secret.mode,
                    optional: secret.optional,
                }),
                ..pb::Mount::default()
            });
        }
    }
    for (ssh, target) in exec.options.ssh.iter().zip(ssh_targets) {
        message.mounts.push(pb::Mount {
            input: -1,
            dest: target.clone(),
            mount_type: pb::MountType::Ssh.into(),
            ssh_opt: Some(pb::SshOpt {
                id: ssh.id.clone(),
                uid: ssh.uid,
                gid: ssh.gid,
                mode: ssh.mode,
                optional: ssh.optional,
            }),
            ..pb::Mount::default()
        });
    }
}

pub(super) fn exec_caps(
    exec: &ExecNode,
    network: pb::NetMode,
    security: pb::SecurityMode,
    metadata: &mut Metadata,
) {
    let options = &exec.options;
    let mut need = |cap: &'static str, when: bool| {
        if when {
            metadata.add_cap(cap);
        }
    };
    need(caps::EXEC_META_BASE, true);
    need(caps::EXEC_META_SETS_DEFAULT_PATH, true);
    need(caps::EXEC_VALID_EXIT_CODE, !options.valid_exit_codes.is_empty());
    need(caps::EXEC_META_ULIMIT, !options.ulimits.is_empty());
    need(caps::EXEC_META_NETWORK, network != pb::NetMode::Unset);
    need(caps::EXEC_META_SECURITY, security == pb::SecurityMode::Insecure);
    need(caps::EXEC_META_PROXY, options.proxy.is_some());
    need(caps::EXEC_META_CDI, !options.devices.is_empty());
    need(caps::EXEC_MOUNT_SECRET, !options.secrets.is_empty());
    need(caps::EXEC_SECRET_ENV, options.secrets.iter().any(|s| s.env.is_some()));
    need(caps::EXEC_MOUNT_SSH, !options.ssh.is_empty());
    for mount in &exec.mounts {
        need(caps::EXEC_MOUNT_SELECTOR, !mount.selector.is_empty());
        match &mount.kind {
            MountKind::Cache { .. } => {
                need(caps::EXEC_MOUNT_CACHE, true);
                need(caps::EXEC_MOUNT_CACHE_SHARING, true);
            }
            MountKind::Tmpfs { size } => {
                need(caps::EXEC_MOUNT_TMPFS, true);
                need(caps::EXEC_MOUNT_TMPFS_SIZE, *size > 0);
            }
            MountKind::Bind | MountKind::BindNoOutput => need(caps::EXEC_MOUNT_BIND, mount.source.is_some()),
        }
    }
}

pub(super) fn action_to_proto(action: &FileAction, dir: &str, base: i64) -> pb::file_action::Action {
    use pb::file_action::Action;
    let time = |timestamp: Option<i64>| timestamp.unwrap_or(-1);
    let owner = |owner: &Option<Owner>| owner.as_ref().map(|owner| owner_to_proto(owner, base));
    let permissions = |mode: u32| (mode & 0o777).cast_signed();
    match action {
        FileAction::Copy(a) => {
            let (mode, mode_str) = match &a.mode {
                None => (-1, String::new()),
                Some(CopyMode::Bits(bits)) => (bits.cast_signed(), String::new()),
                Some(CopyMode::Symbolic(text)) => (0, text.clone()),
            };
            let source = clean_path(&a.source);
            let from_dir = if source.starts_with('/') { "/" } else { a.from.meta().dir.as_str() };
            Action::Copy(pb::FileActionCopy {
                src: join_path(&[from_dir, &source]),
                dest: absolute(dir, &a.destination, true),
                owner: owner(&a.owner),
                mode,
                follow_symlink: a.follow_symlinks,
                dir_copy_contents: a.contents_only,
                attempt_unpack_docker_compatibility: a.unpack,
                create_dest_path: a.create_destination,
                allow_wildcard: a.allow_wildcard,
                allow_empty_wildcard: a.allow_empty_wildcard,
                timestamp: time(a.timestamp),
                include_patterns: a.include_patterns.clone(),
                exclude_patterns: a.exclude_patterns.clone(),
                always_replace_existing_dest_paths: a.replace_existing,
                mode_str,
                required_paths: a.required_paths.clone(),
            })
        }
        FileAction::Mkdir(a) => Action::Mkdir(pb::FileActionMkDir {
            path: absolute(dir, &a.path, false),
            mode: permissions(a.mode),
            make_parents: a.make_parents,
            owner: owner(&a.owner),
            timestamp: time(a.timestamp),
        }),
        FileAction::Mkfile(a) => Action::Mkfile(pb::FileActionMkFile {
            path: absolute(dir, &a.path, false),
            mode: permissions(a.mode),
            data: a.data.clone(),
            owner: owner(&a.owner),
            timestamp: time(a.timestamp),
        }),
        FileAction::Rm(a) => Action::Rm(pb::FileActionRm {
            path: absolute(dir, &a.path, false),
            allow_not_found: a.allow_not_found,
            allow_wildcard: a.allow_wildcard,
        }),
        FileAction::Symlink(a) => Action::Symlink(pb::FileActionSymlink {
            oldpath: a.target.clone(),
            newpath: a.path.clone(),
            owner: owner(&a.owner),
            timestamp: time(a.timestamp),
        }),
    }
}

fn owner_to_proto(owner: &Owner, base: i64) -> pb::ChownOpt {
    use pb::user_opt::User;
    let id = |id: &Option<OwnerId>| {
        id.as_ref().map(|id| pb::UserOpt {
            user: Some(match id {
                // The empty name is number 0, as in BuildKit's client.
                OwnerId::Name(name) if name.is_empty() => User::ById(0),
                OwnerId::Name(name) => User::ByName(pb::NamedUserOpt { name: name.clone(), input: base }),
                OwnerId::Id(id) => User::ById(*id),
            }),
        })
    };
    pb::ChownOpt { user: id(&owner.user), group: id(&owner.group) }
}

/// A path made absolute and clean. `keep_slash` keeps a final `/` or `/.`, which mean "into this directory" to a copy.
fn absolute(dir: &str, path: &str, keep_slash: bool) -> String {
    let mut p = clean_path(path);
    if !p.starts_with('/') {
        p = join_path(&["/", dir, &p]);
    }
    if keep_slash {
        if path.ends_with('/') && !p.ends_with('/') {
            p.push('/');
        } else if path.ends_with("/.") {
            if p != "/" {
                p.push('/');
            }
            p.push('.');
        }
    }
    p
}
