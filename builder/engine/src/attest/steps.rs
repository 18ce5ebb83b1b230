//! A graph as provenance tells it (`mode=max`): its steps by number, and which lines of which file each comes from. As BuildKit's `solver/pb` writes JSON.

use std::collections::BTreeMap;

use base64::Engine as _;
use lapstrake_builder_llb::{
    Definition, Graph, Limits, Vertex,
    pb::{self, file_action::Action, op::Op, user_opt::User},
};
use lapstrake_layerstore_oci::Digest;
use serde::Serialize;
use serde_json::{Map, Value, json};

use crate::EngineError;

/// What says where a client's directory is: it tells nothing to others.
const LOCAL_ATTRS: [&str; 2] = ["local.session", "local.unique"];

/// The steps of a graph.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub(crate) struct BuildConfig {
    #[serde(rename = "llbDefinition", skip_serializing_if = "Vec::is_empty")]
    definition: Vec<BuildStep>,
    /// Which step each vertex is.
    #[serde(rename = "digestMapping", skip_serializing_if = "BTreeMap::is_empty")]
    digest_mapping: BTreeMap<Digest, String>,
}

#[derive(Debug, Clone, PartialEq, Serialize)]
struct BuildStep {
    id: String,
    op: Value,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    inputs: Vec<String>,
}

/// Where steps come from.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(crate) struct SourceMap {
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    locations: BTreeMap<String, Value>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    infos: Vec<SourceFile>,
}

#[derive(Debug, Clone, PartialEq, Serialize)]
struct SourceFile {
    #[serde(skip_serializing_if = "String::is_empty")]
    filename: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    language: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    data: String,
    #[serde(flatten)]
    config: BuildConfig,
}

/// The steps of a graph, and where they come from.
pub(crate) fn steps(definition: &Definition) -> Result<(BuildConfig, Option<SourceMap>), EngineError> {
    let config = config(definition)?;
    let Some(source) = &definition.source else { return Ok((config, None)) };
    if source.infos.is_empty() {
        return Ok((config, None));
    }
    let mut infos = Vec::with_capacity(source.infos.len());
    for info in &source.infos {
        let own = match &info.definition {
            Some(own) => self::config(&Definition::from_proto(own.clone())?)?,
            None => BuildConfig::default(),
        };
        infos.push(SourceFile {
            filename: info.filename.clone(),
            language: info.language.clone(),
            data: base64(&info.data),
            config: own,
        });
    }
    let mut locations = BTreeMap::new();
    for (vertex, found) in &source.locations {
        let step = Digest::parse(vertex).ok().and_then(|vertex| config.digest_mapping.get(&vertex));
        if let Some(step) = step {
            locations.insert(step.clone(), locations_json(found));
        }
    }
    Ok((config, Some(SourceMap { locations, infos })))
}

fn config(definition: &Definition) -> Result<BuildConfig, EngineError> {
    let mut config = BuildConfig::default();
    let Some(terminal) = definition.ops.last() else { return Ok(config) };
    let graph = Graph::parse(definition, Limits::default())?;
    let input = |edge: &lapstrake_builder_llb::Edge| format!("step{}:{}", edge.vertex.0, edge.output);
    for (number, vertex) in graph.vertices().iter().enumerate() {
        let id = format!("step{number}");
        config.digest_mapping.insert(vertex.digest.clone(), id.clone());
        let inputs = vertex.inputs.iter().map(input).collect();
        config.definition.push(BuildStep { id, op: op(vertex), inputs });
    }
    let id = format!("step{}", graph.vertices().len());
    config.digest_mapping.insert(Digest::sha256_of(terminal), id.clone());
    config.definition.push(BuildStep { id, op: json!({"Op": {}}), inputs: vec![input(&graph.target())] });
    Ok(config)
}

/// An object of what is not empty: Go's `omitempty`.
#[derive(Default)]
struct Object(Map<String, Value>);

impl Object {
    fn with(mut self, key: &str, value: impl Into<Value>) -> Self {
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
    fn maybe(mut self, key: &str, value: Option<Value>) -> Self {
        self.0.extend(value.map(|value| (key.to_owned(), value)));
        self
    }

    fn done(self) -> Value {
        Value::Object(self.0)
    }
}

fn base64(data: &[u8]) -> String {
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

fn op(vertex: &Vertex) -> Value {
    let kind = match &vertex.op.op {
        Some(Op::Source(op)) => {
            let shown = op.attrs.iter().filter(|(key, _)| !LOCAL_ATTRS.contains(&key.as_str()));
            json!({"source": Object::default().with("identifier", op.identifier.as_str()).with("attrs", attrs(shown)).done()})
        }
        Some(Op::Exec(op)) => json!({"exec": exec(op)}),
        Some(Op::File(op)) => {
            let actions: Value = op.actions.iter().map(action).collect();
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
    let op = Object::default().maybe("Op", Some(kind));
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

/// Unlike other messages, its numbers are told also when they are 0, and it has no names for what is newer than `rm`.
fn action(action: &pb::FileAction) -> Value {
    let kind = match &action.action {
        Some(Action::Copy(copy)) => json!({"copy": self::copy(copy)}),
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
        Some(Action::Symlink(_)) | None => json!({}),
    };
    json!({
        "input": action.input,
        "secondaryInput": action.secondary_input,
        "output": action.output,
        "Action": kind,
    })
}

fn copy(copy: &pb::FileActionCopy) -> Value {
    Object::default()
        .with("src", copy.src.as_str())
        .with("dest", copy.dest.as_str())
        .maybe("owner", copy.owner.as_ref().map(owner))
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

fn owner(owner: &pb::ChownOpt) -> Value {
    let user = |user: &pb::UserOpt| {
        let kind = match &user.user {
            Some(User::ByName(named)) => {
                let name = Object::default().with("name", named.name.as_str()).with("input", named.input);
                Object::default().maybe("byName", Some(name.done()))
            }
            Some(User::ById(id)) => Object::default().with("byId", *id),
            None => Object::default(),
        };
        json!({"User": kind.done()})
    };
    let owner_user = owner.user.as_ref().map(user);
    Object::default().maybe("user", owner_user).maybe("group", owner.group.as_ref().map(user)).done()
}

fn locations_json(found: &pb::Locations) -> Value {
    let position =
        |at: &pb::Position| Object::default().with("line", at.line).with("character", at.character).done();
    let range = |range: &pb::Range| {
        let start = range.start.as_ref().map(position);
        Object::default().maybe("start", start).maybe("end", range.end.as_ref().map(position)).done()
    };
    let location = |location: &pb::Location| {
        let ranges: Value = location.ranges.iter().map(range).collect();
        Object::default().with("sourceIndex", location.source_index).with("ranges", ranges).done()
    };
    let all: Value = found.locations.iter().map(location).collect();
    Object::default().with("locations", all).done()
}
