//! A graph as text: for goldens, and for people.

use std::fmt::Write as _;

use serde_json::{Map, Value, json};

use crate::pb::{self, file_action::Action, op::Op, user_opt::User};
use crate::{Edge, Graph, Vertex};

/// One paragraph per vertex, inputs first; vertices are numbered, so that only `digest` lines change when a digest does.
pub fn dump(graph: &Graph) -> String {
    let mut out = String::new();
    for (i, vertex) in graph.vertices().iter().enumerate() {
        let _ = writeln!(out, "#{i} {}", vertex.name);
        let _ = writeln!(out, "   digest: {}", vertex.digest);
        if !vertex.inputs.is_empty() {
            let inputs: Vec<String> = vertex.inputs.iter().map(edge).collect();
            let _ = writeln!(out, "   inputs: {}", inputs.join(" "));
        }
        if let Some(lines) = lines(graph, vertex) {
            let _ = writeln!(out, "   lines: {lines}");
        }
        if let Value::Object(fields) = vertex_json(vertex) {
            for (key, value) in fields {
                let _ = writeln!(out, "   {key}: {value}");
            }
        }
    }
    let _ = writeln!(out, "result: {}", edge(&graph.target()));
    out
}

/// The same as JSON.
pub fn dump_json(graph: &Graph) -> Value {
    let vertices: Vec<Value> = graph
        .vertices()
        .iter()
        .map(|v| {
            let inputs: Vec<String> = v.inputs.iter().map(edge).collect();
            json!({"digest": v.digest.as_str(), "name": v.name, "inputs": inputs, "op": vertex_json(v)})
        })
        .collect();
    json!({"vertices": vertices, "result": edge(&graph.target())})
}

/// Where a vertex was written, as `file:2-4`; line ranges that adjoin are one.
fn lines(graph: &Graph, vertex: &Vertex) -> Option<String> {
    let source = graph.source()?;
    let mut runs: Vec<(&str, i32, i32)> = Vec::new();
    for location in &source.locations.get(vertex.digest.as_str())?.locations {
        let info = usize::try_from(location.source_index).ok().and_then(|i| source.infos.get(i));
        let file = info.map_or("", |info| info.filename.as_str());
        for range in &location.ranges {
            let (Some(start), Some(end)) = (range.start, range.end) else { continue };
            match runs.last_mut() {
                Some((last, _, until)) if *last == file && until.checked_add(1) == Some(start.line) => {
                    *until = end.line;
                }
                _ => runs.push((file, start.line, end.line)),
            }
        }
    }
    let text = |(file, start, end): &(&str, i32, i32)| match start == end {
        true => format!("{file}:{start}"),
        false => format!("{file}:{start}-{end}"),
    };
    (!runs.is_empty()).then(|| runs.iter().map(text).collect::<Vec<_>>().join(" "))
}

fn edge(edge: &Edge) -> String {
    match edge.output {
        0 => format!("#{}", edge.vertex.0),
        output => format!("#{}.{output}", edge.vertex.0),
    }
}

fn vertex_json(vertex: &Vertex) -> Value {
    let mut fields = Map::new();
    let mut add = |key: &str, value: Value| {
        if !is_empty(&value) {
            fields.insert(key.to_owned(), value);
        }
    };
    if let Some(p) = &vertex.op.platform {
        let parts = [&p.os, &p.architecture, &p.variant, &p.os_version];
        let parts: Vec<&str> = parts.into_iter().map(String::as_str).filter(|s| !s.is_empty()).collect();
        add("platform", parts.join("/").into());
    }
    let filters = vertex.op.constraints.iter().flat_map(|c| &c.filter);
    add("constraints", filters.cloned().collect());
    match &vertex.op.op {
        Some(Op::Source(s)) => {
            add("source", s.identifier.clone().into());
            add("attrs", json!(s.attrs));
        }
        Some(Op::Exec(e)) => exec_json(e).into_iter().for_each(|(k, v)| add(k, v)),
        Some(Op::File(f)) => {
            for (i, action) in f.actions.iter().enumerate() {
                add(&format!("action {i}"), action_json(action));
            }
        }
        Some(Op::Merge(m)) => add("merge", m.inputs.iter().map(|i| i.input).collect()),
        Some(Op::Diff(d)) => add("diff", json!([d.lower.map(|l| l.input), d.upper.map(|u| u.input)])),
        Some(Op::Build(b)) => add("build", json!({"builder": b.builder, "attrs": b.attrs})),
        None => {
            if let Some(p) = &vertex.passthrough {
                add("passthrough", json!({"id": p.id, "outputs": p.outputs}));
            }
        }
    }
    let m = &vertex.metadata;
    add("ignore cache", m.ignore_cache.into());
    add("export cache", m.export_cache.map_or(Value::Null, |on| if on { "yes" } else { "no" }.into()));
    let description = m.description.iter().filter(|(k, _)| Some(k.as_str()) != Some("llb.customname"));
    add("description", description.map(|(k, v)| (k.clone(), v.clone().into())).collect::<Map<_, _>>().into());
    add("caps", m.caps.iter().map(ToString::to_string).collect());
    if let Some(group) = &m.progress_group {
        add("progress group", json!([group.name, group.weak]));
    }
    fields.into()
}

fn is_empty(value: &Value) -> bool {
    match value {
        Value::Null | Value::Bool(false) => true,
        Value::String(s) => s.is_empty(),
        Value::Array(a) => a.is_empty(),
        Value::Object(o) => o.is_empty(),
        Value::Bool(true) | Value::Number(_) => false,
    }
}

fn object(fields: impl IntoIterator<Item = (&'static str, Value)>) -> Value {
    let fields = fields.into_iter().filter(|(_, value)| !is_empty(value));
    Value::Object(fields.map(|(key, value)| (key.to_owned(), value)).collect())
}

fn exec_json(exec: &pb::ExecOp) -> Vec<(&'static str, Value)> {
    let meta = exec.meta.clone().unwrap_or_default();
    let mut fields = vec![
        ("args", json!(meta.args)),
        ("env", json!(meta.env)),
        ("cwd", meta.cwd.into()),
        ("user", meta.user.into()),
        ("hostname", meta.hostname.into()),
        ("cgroup parent", meta.cgroup_parent.into()),
        ("hosts", meta.extra_hosts.iter().map(|h| format!("{}={}", h.host, h.ip)).collect()),
        ("ulimits", meta.ulimit.iter().map(|u| format!("{}={}:{}", u.name, u.soft, u.hard)).collect()),
        ("valid exit codes", json!(meta.valid_exit_codes)),
    ];
    if let Some(p) = meta.proxy_env {
        let proxy = [
            ("http", p.http_proxy.into()),
            ("https", p.https_proxy.into()),
            ("ftp", p.ftp_proxy.into()),
            ("no", p.no_proxy.into()),
            ("all", p.all_proxy.into()),
        ];
        fields.push(("proxy", object(proxy)));
    }
    if exec.network != 0 {
        fields.push(("network", exec.network().as_str_name().to_lowercase().into()));
    }
    if exec.security != 0 {
        fields.push(("security", exec.security().as_str_name().to_lowercase().into()));
    }
    let optional = |on: bool| if on { " optional" } else { "" };
    let secrets = exec.secretenv.iter();
    fields.push((
        "secret env",
        secrets.map(|s| format!("{}={}{}", s.name, s.id, optional(s.optional))).collect(),
    ));
    let devices = exec.cdi_devices.iter();
    fields.push(("devices", devices.map(|d| format!("{}{}", d.name, optional(d.optional))).collect()));
    fields.push(("mounts", exec.mounts.iter().map(mount_json).collect()));
    fields
}

fn mount_json(m: &pb::Mount) -> Value {
    let number = |n: i64| if n < 0 { Value::Null } else { n.into() };
    let owner = |uid: u32, gid: u32, mode: u32| format!("{uid}:{gid} {mode:04o}");
    let mut fields = vec![
        ("dest", m.dest.clone().into()),
        (
            "type",
            if m.mount_type == 0 { Value::Null } else { m.mount_type().as_str_name().to_lowercase().into() },
        ),
        ("input", number(m.input)),
        ("output", if m.mount_type == 0 { number(m.output) } else { Value::Null }),
        ("selector", m.selector.clone().into()),
        ("readonly", m.readonly.into()),
    ];
    if let Some(c) = &m.cache_opt {
        fields.push(("id", c.id.clone().into()));
        fields.push(("sharing", c.sharing().as_str_name().to_lowercase().into()));
    }
    if let Some(t) = &m.tmpfs_opt {
        fields.push(("size", if t.size == 0 { Value::Null } else { t.size.into() }));
    }
    if let Some(s) = &m.secret_opt {
        fields.extend([
            ("id", s.id.clone().into()),
            ("owner", owner(s.uid, s.gid, s.mode).into()),
            ("optional", s.optional.into()),
        ]);
    }
    if let Some(s) = &m.ssh_opt {
        fields.extend([
            ("id", s.id.clone().into()),
            ("owner", owner(s.uid, s.gid, s.mode).into()),
            ("optional", s.optional.into()),
        ]);
    }
    object(fields)
}

fn action_json(action: &pb::FileAction) -> Value {
    let number = |n: i64| if n < 0 { Value::Null } else { Value::from(n) };
    let mut fields = vec![
        ("input", number(action.input)),
        ("secondary", number(action.secondary_input)),
        ("output", number(action.output)),
    ];
    let time = |t: i64| ("time", number(t));
    match &action.action {
        Some(Action::Copy(a)) => fields.extend([
            ("copy", json!([a.src, a.dest])),
            ("owner", owner_json(a.owner.as_ref())),
            ("mode", if a.mode < 0 { Value::Null } else { format!("{:04o}", a.mode).into() }),
            ("mode string", a.mode_str.clone().into()),
            ("follow symlink", a.follow_symlink.into()),
            ("contents only", a.dir_copy_contents.into()),
            ("unpack", a.attempt_unpack_docker_compatibility.into()),
            ("create dest", a.create_dest_path.into()),
            ("wildcard", a.allow_wildcard.into()),
            ("empty wildcard", a.allow_empty_wildcard.into()),
            ("include", json!(a.include_patterns)),
            ("exclude", json!(a.exclude_patterns)),
            ("required", json!(a.required_paths)),
            ("replace existing", a.always_replace_existing_dest_paths.into()),
            time(a.timestamp),
        ]),
        Some(Action::Mkdir(a)) => fields.extend([
            ("mkdir", a.path.clone().into()),
            ("mode", format!("{:04o}", a.mode).into()),
            ("parents", a.make_parents.into()),
            ("owner", owner_json(a.owner.as_ref())),
            time(a.timestamp),
        ]),
        Some(Action::Mkfile(a)) => fields.extend([
            ("mkfile", a.path.clone().into()),
            ("mode", format!("{:04o}", a.mode).into()),
            ("data", String::from_utf8_lossy(&a.data).into()),
            ("owner", owner_json(a.owner.as_ref())),
            time(a.timestamp),
        ]),
        Some(Action::Rm(a)) => fields.extend([
            ("rm", a.path.clone().into()),
            ("allow not found", a.allow_not_found.into()),
            ("wildcard", a.allow_wildcard.into()),
        ]),
        Some(Action::Symlink(a)) => fields.extend([
            ("symlink", json!([a.oldpath, a.newpath])),
            ("owner", owner_json(a.owner.as_ref())),
            time(a.timestamp),
        ]),
        None => {}
    }
    object(fields)
}

fn owner_json(owner: Option<&pb::ChownOpt>) -> Value {
    let Some(owner) = owner else { return Value::Null };
    let one = |user: &Option<pb::UserOpt>| match user.as_ref().and_then(|u| u.user.as_ref()) {
        None => String::new(),
        Some(User::ById(id)) => id.to_string(),
        Some(User::ByName(named)) => format!("{}@{}", named.name, named.input),
    };
    format!("{}:{}", one(&owner.user), one(&owner.group)).into()
}
