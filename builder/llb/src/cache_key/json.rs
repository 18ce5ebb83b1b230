//! The ops' JSON, field by field as the Go structs have them.

use base64::Engine as _;
use serde_json::{Map, Value, json};

use super::Dialect;
use crate::pb;

/// A JSON object that keeps the order of its fields, and leaves out what Go's `omitempty` leaves out.
#[derive(Default)]
pub(super) struct Object(Map<String, Value>);

impl Object {
    pub(super) fn new() -> Self {
        Self::default()
    }

    pub(super) fn always(&mut self, name: &str, value: impl Into<Value>) {
        self.0.insert(name.to_owned(), value.into());
    }

    pub(super) fn text(&mut self, name: &str, value: &str) {
        if !value.is_empty() {
            self.always(name, value);
        }
    }

    pub(super) fn texts(&mut self, name: &str, values: &[String]) {
        if !values.is_empty() {
            self.always(name, values.to_vec());
        }
    }

    fn number(&mut self, name: &str, value: impl Into<i64>) {
        let value = value.into();
        if value != 0 {
            self.always(name, value);
        }
    }

    fn index(&mut self, name: &str, value: i64, dialect: Dialect) {
        if value != 0 || dialect.writes_zero_indexes() {
            self.always(name, value);
        }
    }

    fn flag(&mut self, name: &str, value: bool) {
        if value {
            self.always(name, true);
        }
    }

    fn list<T>(&mut self, name: &str, values: &[T], value: impl Fn(&T) -> Value) {
        if !values.is_empty() {
            self.always(name, values.iter().map(value).collect::<Vec<_>>());
        }
    }

    fn object<T>(&mut self, name: &str, value: Option<&T>, object: impl Fn(&T) -> Value) {
        if let Some(value) = value {
            self.always(name, object(value));
        }
    }
}

impl From<Object> for Value {
    fn from(object: Object) -> Self {
        Self::Object(object.0)
    }
}

/// Builds an object in one expression.
fn build(fill: impl FnOnce(&mut Object)) -> Value {
    let mut object = Object::new();
    fill(&mut object);
    object.into()
}

pub(super) fn base64(bytes: &[u8]) -> String {
    base64::engine::general_purpose::STANDARD.encode(bytes)
}

pub(super) fn index(input: i64, dialect: Dialect) -> Value {
    build(|o| o.index("input", input, dialect))
}

pub(super) fn exec_op(op: &pb::ExecOp, dialect: Dialect) -> Value {
    build(|o| {
        o.object("meta", op.meta.as_ref(), meta);
        o.list("mounts", &op.mounts, |mount| self::mount(mount, dialect));
        o.number("network", op.network);
        o.number("security", op.security);
        o.list("secretenv", &op.secretenv, |env| {
            build(|o| {
                o.text("ID", &env.id);
                o.text("name", &env.name);
                o.flag("optional", env.optional);
            })
        });
        o.list("cdiDevices", &op.cdi_devices, |device| {
            build(|o| {
                o.text("name", &device.name);
                o.flag("optional", device.optional);
            })
        });
    })
}

fn meta(meta: &pb::Meta) -> Value {
    build(|o| {
        o.texts("args", &meta.args);
        o.texts("env", &meta.env);
        o.text("cwd", &meta.cwd);
        o.text("user", &meta.user);
        o.list("extraHosts", &meta.extra_hosts, |host| {
            build(|o| {
                o.text("Host", &host.host);
                o.text("IP", &host.ip);
            })
        });
        o.text("hostname", &meta.hostname);
        o.list("ulimit", &meta.ulimit, |limit| {
            build(|o| {
                o.text("Name", &limit.name);
                o.number("Soft", limit.soft);
                o.number("Hard", limit.hard);
            })
        });
        o.text("cgroupParent", &meta.cgroup_parent);
        o.flag("removeMountStubsRecursive", meta.remove_mount_stubs_recursive);
        o.list("validExitCodes", &meta.valid_exit_codes, |code| json!(code));
    })
}

fn mount(mount: &pb::Mount, dialect: Dialect) -> Value {
    build(|o| {
        o.index("input", mount.input, dialect);
        o.text("selector", &mount.selector);
        o.text("dest", &mount.dest);
        o.index("output", mount.output, dialect);
        o.flag("readonly", mount.readonly);
        o.number("mountType", mount.mount_type);
        o.object("TmpfsOpt", mount.tmpfs_opt.as_ref(), |tmpfs| build(|o| o.number("size", tmpfs.size)));
        o.object("cacheOpt", mount.cache_opt.as_ref(), |cache| {
            build(|o| {
                o.text("ID", &cache.id);
                o.number("sharing", cache.sharing);
            })
        });
        o.object("secretOpt", mount.secret_opt.as_ref(), |secret| {
            credential(&secret.id, [secret.uid, secret.gid, secret.mode], secret.optional)
        });
        o.object("SSHOpt", mount.ssh_opt.as_ref(), |ssh| {
            credential(&ssh.id, [ssh.uid, ssh.gid, ssh.mode], ssh.optional)
        });
        o.text("resultID", &mount.result_id);
        o.number("contentCache", mount.content_cache);
    })
}

fn credential(id: &str, [uid, gid, mode]: [u32; 3], optional: bool) -> Value {
    build(|o| {
        o.text("ID", id);
        o.number("uid", uid);
        o.number("gid", gid);
        o.number("mode", mode);
        o.flag("optional", optional);
    })
}

fn owner(owner: &pb::ChownOpt, dialect: Dialect) -> Value {
    build(|o| {
        o.object("user", owner.user.as_ref(), |user| self::user(user, dialect));
        o.object("group", owner.group.as_ref(), |user| self::user(user, dialect));
    })
}

fn user(user: &pb::UserOpt, dialect: Dialect) -> Value {
    let (by_name, by_id) = dialect.user_fields();
    let inner = build(|o| match &user.user {
        Some(pb::user_opt::User::ByName(name)) => o.always(
            by_name,
            build(|o| {
                o.text("name", &name.name);
                o.index("input", name.input, dialect);
            }),
        ),
        Some(pb::user_opt::User::ById(id)) => o.number(by_id, *id),
        None => {}
    });
    json!({ "User": inner })
}

pub(super) fn mkdir_action(mkdir: &pb::FileActionMkDir, dialect: Dialect) -> Value {
    build(|o| {
        o.text("path", &mkdir.path);
        o.number("mode", mkdir.mode);
        o.flag("makeParents", mkdir.make_parents);
        o.object("owner", mkdir.owner.as_ref(), |owner| self::owner(owner, dialect));
        o.number("timestamp", mkdir.timestamp);
    })
}

pub(super) fn mkfile_action(mkfile: &pb::FileActionMkFile, dialect: Dialect) -> Value {
    build(|o| {
        o.text("path", &mkfile.path);
        o.number("mode", mkfile.mode);
        o.text("data", &base64(&mkfile.data));
        o.object("owner", mkfile.owner.as_ref(), |owner| self::owner(owner, dialect));
        o.number("timestamp", mkfile.timestamp);
    })
}

pub(super) fn symlink_action(symlink: &pb::FileActionSymlink, dialect: Dialect) -> Value {
    build(|o| {
        o.text("oldpath", &symlink.oldpath);
        o.text("newpath", &symlink.newpath);
        o.object("owner", symlink.owner.as_ref(), |owner| self::owner(owner, dialect));
        o.number("timestamp", symlink.timestamp);
    })
}

pub(super) fn rm_action(rm: &pb::FileActionRm) -> Value {
    build(|o| {
        o.text("path", &rm.path);
        o.flag("allowNotFound", rm.allow_not_found);
        o.flag("allowWildcard", rm.allow_wildcard);
    })
}

pub(super) fn copy_action(copy: &pb::FileActionCopy, dialect: Dialect) -> Value {
    build(|o| {
        o.text("src", &copy.src);
        o.text("dest", &copy.dest);
        o.object("owner", copy.owner.as_ref(), |owner| self::owner(owner, dialect));
        o.number("mode", copy.mode);
        o.flag("followSymlink", copy.follow_symlink);
        o.flag("dirCopyContents", copy.dir_copy_contents);
        o.flag("attemptUnpackDockerCompatibility", copy.attempt_unpack_docker_compatibility);
        o.flag("createDestPath", copy.create_dest_path);
        o.flag("allowWildcard", copy.allow_wildcard);
        o.flag("allowEmptyWildcard", copy.allow_empty_wildcard);
        o.number("timestamp", copy.timestamp);
        o.texts("include_patterns", &copy.include_patterns);
        o.texts("exclude_patterns", &copy.exclude_patterns);
        o.flag("alwaysReplaceExistingDestPaths", copy.always_replace_existing_dest_paths);
        o.text("modeStr", &copy.mode_str);
        o.texts("required_paths", &copy.required_paths);
    })
}
