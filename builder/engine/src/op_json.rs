//! Ops as JSON, in the two ways that BuildKit writes them: that of Go's `encoding/json` (provenance), and that of protobufs (details of errors).
//! Both read numbers of enums, and fields' names as `ops.proto` has them; they differ in what a `oneof` holds.

use base64::Engine as _;
use lapstrake_builder_llb::{
    Vertex,
    pb::{self, file_action::Action, op::Op, user_opt::User},
};
use serde_json::{Map, Value, json};

/// What says where a client's directory is: it tells nothing to others.
const LOCAL_ATTRS: [&str; 2] = ["local.session", "local.unique"];

/// How what a `oneof` holds is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Oneofs {
    /// Under the `oneof`'s own name: Go's structs, which have no names for what is newer than they are.
    Nested,
    /// Among the other fields: protobufs.
    Flat,
}

/// An object of what is not empty: Go's `omitempty`.
#[derive(Default)]
pub(crate) struct Object(Map<String, Value>);

impl Object {
    pub(crate) fn with(mut self, key: &str, value: impl Into<Value>) -> Self {
        let value = value.into();
        let is_empty = match &value {
            Value::Null => true,
            Value::Bool(on) => !on,
            Value::Number(number) => number.as_f64() == Some(0.0),
            Value::String(text) => text.is_empty(),
            Value::Array(all) => all.is_empty(),
            // A message that is there is told, also an empty one.
            Value::Object(_) => false,
        };
        if !is_empty {
            self.0.insert(key.to_owned(), value);
        }
        self
    }

    /// The same for what is there or not, and told also when it is empty.
    pub(crate) fn maybe(mut self, key: &str, value: Option<Value>) -> Self {
        self.0.extend(value.map(|value| (key.to_owned(), value)));
        self
    }

    /// What a `oneof` of this name holds: an object of one field.
    fn oneof(mut self, name: &str, kind: Value, oneofs: Oneofs) -> Self {
        match (kind, oneofs) {
            (Value::Object(kind), Oneofs::Flat) => self.0.extend(kind),
            (kind, _) => _ = self.0.insert(name.to_owned(), kind),
        }
        self
    }

    pub(crate) fn done(self) -> Value {
        Value::Object(self.0)
    }
}

pub(crate) fn base64(data: &[u8]) -> String {
    base64::engine::general_purpose::STANDARD.encode(data)
}

fn texts(all: &[String]) -> Value {
    all.iter().cloned().collect()
}

fn attrs<'a>(all: impl IntoIterator<Item = (&'a String, &'a String)>) -> Value {
    let all: Map<String, Value> =
        all.into_iter().map(|(key, value)| (key.clone(), value.clone().into())).collect();
    if all.is_empty() { Value::Null } else { all.into() }
}

/// The op of a vertex. Its inputs are told in the flat form only: to provenance they are steps.
pub(crate) fn of(vertex: &Vertex, oneofs: Oneofs) -> Value {
    let kind = match &vertex.op.op {
        Some(Op::Source(op)) => {
            let is_shown = |key: &str| oneofs == Oneofs::Flat || !LOCAL_ATTRS.contains(&key);
            let shown = op.attrs.iter().filter(|(key, _)| is_shown(key));
            json!({"source": Object::default().with("identifier", op.identifier.as_str()).with("attrs", attrs(shown)).done()})
        }
        Some(Op::Exec(op)) => json!({"exec": exec(op)}),
        Some(Op::File(op)) => {
            let actions: Value = op.actions.iter().map(|one| action(one, oneofs)).collect();
            json!({"file": Object::default().with("actions", actions).done()})
        }
        Some(Op::Merge(op)) => {
            let inputs: Value =
                op.inputs.iter().map(|input| Object::default().with("input", input.input).done()).collect();
            json!({"merge": Object::default().with("inputs", inputs).done()})
        }
        Some(Op::Diff(op)) => {
            let lower = op.lower.map(|lower| Object::default().with("input", lower.input).done());
            let upper = op.upper.map(|upper| Object::default().with("input", upper.input).done());
            json!({"diff": Object::default().maybe("lower", lower).maybe("upper", upper).done()})
        }
        Some(Op::Build(op)) => {
            let inputs: Map<String, Value> = op
                .inputs
                .iter()
                .map(|(name, input)| (name.clone(), Object::default().with("input", input.input).done()))
                .collect();
            let inputs = if inputs.is_empty() { Value::Null } else { inputs.into() };
            let def = op.def.as_ref().map(|def| {
                let def: Value = def.def.iter().map(|op| base64(op)).collect();
                Object::default().with("def", def).done()
            });
            let build = Object::default().with("builder", op.builder).with("inputs", inputs);
            json!({"build": build.maybe("def", def).with("attrs", attrs(&op.attrs)).done()})
        }
        None => match &vertex.passthrough {
            Some(op) => {
                let outputs: Value = op.outputs.iter().copied().collect();
                json!({"passthrough": Object::default().with("id", op.id.as_str()).with("outputs", outputs).done()})
            }
            None => json!({}),
        },
    };
    let platform = vertex.op.platform.as_ref().map(|platform| {
        Object::default()
            .with("Architecture", platform.architecture.as_str())
            .with("OS", platform.os.as_str())
            .with("Variant", platform.variant.as_str())
            .with("OSVersion", platform.os_version.as_str())
            .with("OSFeatures", texts(&platform.os_features))
            .done()
    });
    let constraints = vertex.op.constraints.as_ref();
    let constraints = constraints.map(|all| Object::default().with("filter", texts(&all.filter)).done());
    let input = |input: &pb::Input| {
        Object::default().with("digest", input.digest.as_str()).with("index", input.index).done()
    };
    let inputs = match oneofs {
        Oneofs::Nested => Value::Null,
        Oneofs::Flat => vertex.op.inputs.iter().map(input).collect(),
    };
    let op = Object::default().with("inputs", inputs).oneof("Op", kind, oneofs);
    op.maybe("platform", platform).maybe("constraints", constraints).done()
}

fn exec(op: &pb::ExecOp) -> Value {
    let mounts: Value = op.mounts.iter().map(mount).collect();
    let secrets: Value = op
        .secretenv
        .iter()
        .map(|secret| {
            let id = Object::default().with("ID", secret.id.as_str());
            id.with("name", secret.name.as_str()).with("optional", secret.optional).done()
        })
        .collect();
    let devices: Value = op
        .cdi_devices
        .iter()
        .map(|device| {
            Object::default().with("name", device.name.as_str()).with("optional", device.optional).done()
        })
        .collect();
    Object::default()
        .maybe("meta", op.meta.as_ref().map(meta))
        .with("mounts", mounts)
        .with("network", op.network)
        .with("security", op.security)
        .with("secretenv", secrets)
        .with("cdiDevices", devices)
        .done()
}

fn meta(meta: &pb::Meta) -> Value {
    let proxy = meta.proxy_env.as_ref().map(|proxy| {
        Object::default()
            .with("http_proxy", proxy.http_proxy.as_str())
            .with("https_proxy", proxy.https_proxy.as_str())
            .with("ftp_proxy", proxy.ftp_proxy.as_str())
            .with("no_proxy", proxy.no_proxy.as_str())
            .with("all_proxy", proxy.all_proxy.as_str())
            .done()
    });
    let host = |host: &pb::HostIp| {
        Object::default().with("Host", host.host.as_str()).with("IP", host.ip.as_str()).done()
    };
    let limit = |limit: &pb::Ulimit| {
        let named = Object::default().with("Name", limit.name.as_str());
        named.with("Soft", limit.soft).with("Hard", limit.hard).done()
    };
    let codes: Value = meta.valid_exit_codes.iter().copied().collect();
    Object::default()
        .with("args", texts(&meta.args))
        .with("env", texts(&meta.env))
        .with("cwd", meta.cwd.as_str())
        .with("user", meta.user.as_str())
        .maybe("proxy_env", proxy)
        .with("extraHosts", meta.extra_hosts.iter().map(host).collect::<Value>())
        .with("hostname", meta.hostname.as_str())
        .with("ulimit", meta.ulimit.iter().map(limit).collect::<Value>())
        .with("cgroupParent", meta.cgroup_parent.as_str())
        .with("removeMountStubsRecursive", meta.remove_mount_stubs_recursive)
        .with("validExitCodes", codes)
        .done()
}

fn mount(mount: &pb::Mount) -> Value {
    let access = |id: &str, (uid, gid, mode): (u32, u32, u32), optional: bool| {
        let owned = Object::default().with("ID", id).with("uid", uid).with("gid", gid);
        owned.with("mode", mode).with("optional", optional).done()
    };
    let cache = mount.cache_opt.as_ref();
    let secret = mount.secret_opt.as_ref();
    let agent = mount.ssh_opt.as_ref();
    Object::default()
        .with("input", mount.input)
        .with("selector", mount.selector.as_str())
        .with("dest", mount.dest.as_str())
        .with("output", mount.output)
        .with("readonly", mount.readonly)
        .with("mountType", mount.mount_type)
        .maybe(
            "TmpfsOpt",
            mount.tmpfs_opt.as_ref().map(|tmpfs| Object::default().with("size", tmpfs.size).done()),
        )
        .maybe(
            "cacheOpt",
            cache.map(|c| Object::default().with("ID", c.id.as_str()).with("sharing", c.sharing).done()),
        )
        .maybe("secretOpt", secret.map(|s| access(&s.id, (s.uid, s.gid, s.mode), s.optional)))
        .maybe("SSHOpt", agent.map(|s| access(&s.id, (s.uid, s.gid, s.mode), s.optional)))
        .with("resultID", mount.result_id.as_str())
        .with("contentCache", mount.content_cache)
        .done()
}

/// Unlike other messages, its numbers are told also when they are 0; nested, it has no names for what is newer than `rm`.
fn action(action: &pb::FileAction, oneofs: Oneofs) -> Value {
    let owner = |chown: &pb::ChownOpt| self::owner(chown, oneofs);
    let kind = match &action.action {
        Some(Action::Copy(copy)) => json!({"copy": self::copy(copy, oneofs)}),
        Some(Action::Mkfile(file)) => {
            let made = Object::default().with("path", file.path.as_str()).with("mode", file.mode);
            let made = made.with("data", base64(&file.data)).maybe("owner", file.owner.as_ref().map(owner));
            json!({"mkfile": made.with("timestamp", file.timestamp).done()})
        }
        Some(Action::Mkdir(dir)) => {
            let made = Object::default().with("path", dir.path.as_str()).with("mode", dir.mode);
            let made =
                made.with("makeParents", dir.make_parents).maybe("owner", dir.owner.as_ref().map(owner));
            json!({"mkdir": made.with("timestamp", dir.timestamp).done()})
        }
        Some(Action::Rm(rm)) => {
            let gone = Object::default().with("path", rm.path.as_str());
            let gone =
                gone.with("allowNotFound", rm.allow_not_found).with("allowWildcard", rm.allow_wildcard);
            json!({"rm": gone.done()})
        }
        Some(Action::Symlink(link)) if oneofs == Oneofs::Flat => {
            let made = Object::default()
                .with("oldpath", link.oldpath.as_str())
                .with("newpath", link.newpath.as_str());
            let made = made.maybe("owner", link.owner.as_ref().map(owner));
            json!({"symlink": made.with("timestamp", link.timestamp).done()})
        }
        Some(Action::Symlink(_)) | None => json!({}),
    };
    Object::default()
        .maybe("input", Some(action.input.into()))
        .maybe("secondaryInput", Some(action.secondary_input.into()))
        .maybe("output", Some(action.output.into()))
        .oneof("Action", kind, oneofs)
        .done()
}

fn copy(copy: &pb::FileActionCopy, oneofs: Oneofs) -> Value {
    Object::default()
        .with("src", copy.src.as_str())
        .with("dest", copy.dest.as_str())
        .maybe("owner", copy.owner.as_ref().map(|chown| owner(chown, oneofs)))
        .with("mode", copy.mode)
        .with("followSymlink", copy.follow_symlink)
        .with("dirCopyContents", copy.dir_copy_contents)
        .with("attemptUnpackDockerCompatibility", copy.attempt_unpack_docker_compatibility)
        .with("createDestPath", copy.create_dest_path)
        .with("allowWildcard", copy.allow_wildcard)
        .with("allowEmptyWildcard", copy.allow_empty_wildcard)
        .with("timestamp", copy.timestamp)
        .with("include_patterns", texts(&copy.include_patterns))
        .with("exclude_patterns", texts(&copy.exclude_patterns))
        .with("alwaysReplaceExistingDestPaths", copy.always_replace_existing_dest_paths)
        .with("modeStr", copy.mode_str.as_str())
        .with("required_paths", texts(&copy.required_paths))
        .done()
}

fn owner(owner: &pb::ChownOpt, oneofs: Oneofs) -> Value {
    let user = |user: &pb::UserOpt| {
        let kind = match &user.user {
            Some(User::ByName(named)) => {
                let name = Object::default().with("name", named.name.as_str()).with("input", named.input);
                Object::default().maybe("byName", Some(name.done()))
            }
            Some(User::ById(id)) if oneofs == Oneofs::Nested => Object::default().with("byId", *id),
            // In a `oneof`, 0 is a value.
            Some(User::ById(id)) => Object::default().maybe("byId", Some((*id).into())),
            None => Object::default(),
        };
        Object::default().oneof("User", kind.done(), oneofs).done()
    };
    let owner_user = owner.user.as_ref().map(user);
    Object::default().maybe("user", owner_user).maybe("group", owner.group.as_ref().map(user)).done()
}
