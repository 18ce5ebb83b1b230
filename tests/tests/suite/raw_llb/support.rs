//! Graphs made by hand, message by message.

use std::collections::BTreeMap;

use bytes::Bytes;
use lapstrake_builder_engine::{BuildRequest, EngineError, Input};
use lapstrake_builder_llb::{Definition, Metadata, pb};
use lapstrake_layerstore_oci::Digest;
use lapstrake_session::SessionId;
use lapstrake_tests::{Built, Context, Workbench};
use prost::Message as _;

/// A graph in the making.
#[derive(Default)]
pub(crate) struct Llb {
    pub(crate) ops: Vec<Bytes>,
    pub(crate) metadata: BTreeMap<Digest, Metadata>,
}

/// An output of an op.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Out {
    pub(crate) digest: Digest,
    pub(crate) index: i64,
}

impl Out {
    /// Another output of the same op.
    pub(crate) fn output(&self, index: i64) -> Out {
        Out { digest: self.digest.clone(), index }
    }
}

impl Llb {
    pub(crate) fn raw(&mut self, bytes: Vec<u8>) -> Out {
        let digest = Digest::sha256_of(&bytes);
        self.ops.push(bytes.into());
        Out { digest, index: 0 }
    }

    pub(crate) fn add(&mut self, inputs: &[&Out], op: pb::op::Op) -> Out {
        let op = pb::Op {
            inputs: inputs.iter().map(|out| input(out)).collect(),
            op: Some(op),
            ..Default::default()
        };
        self.raw(op.encode_to_vec())
    }

    pub(crate) fn source(&mut self, identifier: &str, attrs: &[(&str, &str)]) -> Out {
        let attrs = attrs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
        self.add(&[], pb::op::Op::Source(pb::SourceOp { identifier: identifier.to_owned(), attrs }))
    }

    pub(crate) fn busybox(&mut self) -> Out {
        self.source("docker-image://docker.io/library/busybox:latest", &[])
    }

    /// A process with these mounts, the root's among them.
    pub(crate) fn exec(&mut self, inputs: &[&Out], script: &str, mounts: Vec<pb::Mount>) -> Out {
        self.add(inputs, pb::op::Op::Exec(exec(script, mounts)))
    }

    /// A process that writes to the root it runs on.
    pub(crate) fn run(&mut self, root: &Out, script: &str) -> Out {
        self.exec(&[root], script, vec![bind("/", 0, 0)])
    }

    pub(crate) fn file(&mut self, inputs: &[&Out], actions: Vec<pb::FileAction>) -> Out {
        self.add(inputs, pb::op::Op::File(pb::FileOp { actions }))
    }

    /// A tree of nothing but one file.
    pub(crate) fn text(&mut self, path: &str, text: &str) -> Out {
        self.file(&[], vec![action(-1, -1, 0, mkfile(path, text))])
    }

    pub(crate) fn say(&mut self, of: &Out) -> &mut Metadata {
        self.metadata.entry(of.digest.clone()).or_default()
    }

    /// The graph whose result this is.
    pub(crate) fn definition(&self, result: &Out) -> Definition {
        let end = pb::Op { inputs: vec![input(result)], ..Default::default() };
        let mut ops = self.ops.clone();
        ops.push(end.encode_to_vec().into());
        Definition { ops, metadata: self.metadata.clone(), source: None }
    }
}

pub(crate) fn input(out: &Out) -> pb::Input {
    pb::Input { digest: out.digest.to_string(), index: out.index }
}

pub(crate) fn exec(script: &str, mounts: Vec<pb::Mount>) -> pb::ExecOp {
    let meta = pb::Meta {
        args: ["/bin/sh", "-ec", script].map(str::to_owned).to_vec(),
        cwd: "/".to_owned(),
        env: vec!["PATH=/bin:/usr/bin:/sbin".to_owned()],
        ..Default::default()
    };
    pb::ExecOp { meta: Some(meta), mounts, ..Default::default() }
}

/// A mount of an input (-1 for nothing), whose content is an output (-1 for none).
pub(crate) fn bind(dest: &str, input: i64, output: i64) -> pb::Mount {
    pb::Mount { dest: dest.to_owned(), input, output, ..Default::default() }
}

pub(crate) fn read_only(mount: pb::Mount) -> pb::Mount {
    pb::Mount { readonly: true, ..mount }
}

pub(crate) fn cache(dest: &str, input: i64, id: &str, sharing: pb::CacheSharingOpt) -> pb::Mount {
    pb::Mount {
        mount_type: pb::MountType::Cache.into(),
        cache_opt: Some(pb::CacheOpt { id: id.to_owned(), sharing: sharing.into() }),
        ..bind(dest, input, -1)
    }
}

pub(crate) fn action(
    input: i64,
    secondary_input: i64,
    output: i64,
    action: pb::file_action::Action,
) -> pb::FileAction {
    pb::FileAction { input, secondary_input, output, action: Some(action) }
}

pub(crate) fn mkfile(path: &str, text: &str) -> pb::file_action::Action {
    pb::file_action::Action::Mkfile(pb::FileActionMkFile {
        path: path.to_owned(),
        mode: 0o644,
        data: text.as_bytes().to_vec(),
        timestamp: -1,
        ..Default::default()
    })
}

/// A request for the image `app` of a graph.
pub(crate) async fn request(bench: &Workbench, definition: Definition) -> BuildRequest {
    let mut request = bench.request(Context::new("FROM scratch"), "app").await.unwrap();
    request.input = Input::Definition { definition, options: BTreeMap::new() };
    request
}

pub(crate) async fn solve(bench: &Workbench, llb: &Llb, result: &Out) -> Result<Built, EngineError> {
    bench.run(request(bench, llb.definition(result)).await).await.1
}

pub(crate) async fn solve_with(
    bench: &Workbench,
    session: SessionId,
    llb: &Llb,
    result: &Out,
) -> Result<Built, EngineError> {
    let mut request = request(bench, llb.definition(result)).await;
    request.session = Some(session);
    bench.run(request).await.1
}

/// The words of a build that must fail.
pub(crate) async fn failure(bench: &Workbench, llb: &Llb, result: &Out) -> String {
    solve(bench, llb, result).await.unwrap_err().to_string()
}

/// What a script says that is run over the result, of whatever op it is.
pub(crate) async fn look(bench: &Workbench, llb: &mut Llb, result: &Out, script: &str) -> String {
    let busybox = llb.busybox();
    let script = format!("cd /look; ({script}) > /out/text");
    let looked = llb.exec(
        &[&busybox, result],
        &script,
        vec![bind("/", 0, -1), read_only(bind("/look", 1, -1)), bind("/out", -1, 0)],
    );
    solve(bench, llb, &looked).await.unwrap();
    bench.read("app", "text")
}
