//! Graphs by hand.

use lapstrake_api_proto::llb as pb;
use prost::Message as _;
use sha2::{Digest as _, Sha256};

/// A graph that is being written.
#[derive(Debug, Clone, Default)]
pub struct Llb {
    definition: pb::Definition,
}

impl Llb {
    /// Adds an op with these inputs (digests of ops, and which of their outputs); its digest.
    pub fn add(&mut self, op: pb::op::Op, inputs: &[(&str, i64)]) -> String {
        let inputs =
            inputs.iter().map(|(digest, index)| pb::Input { digest: (*digest).to_owned(), index: *index });
        let platform = pb::Platform {
            architecture: if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" }.to_owned(),
            os: "linux".to_owned(),
            ..pb::Platform::default()
        };
        let op = pb::Op {
            inputs: inputs.collect(),
            op: Some(op),
            platform: Some(platform),
            constraints: Some(pb::WorkerConstraints::default()),
        };
        self.add_bytes(op.encode_to_vec())
    }

    /// Adds bytes that are to be an op.
    pub fn add_bytes(&mut self, bytes: Vec<u8>) -> String {
        let digest = digest(&bytes);
        self.definition.def.push(bytes);
        self.definition.metadata.insert(digest.clone(), pb::OpMetadata::default());
        digest
    }

    /// A source.
    pub fn source(&mut self, identifier: &str) -> String {
        let source = pb::SourceOp { identifier: identifier.to_owned(), attrs: Default::default() };
        self.add(pb::op::Op::Source(source), &[])
    }

    /// A file with this content, over an op's output or an empty tree.
    pub fn file(&mut self, base: Option<&str>, path: &str, data: &[u8]) -> String {
        let mkfile = pb::FileActionMkFile {
            path: path.to_owned(),
            mode: 0o644,
            data: data.to_vec(),
            timestamp: -1,
            ..pb::FileActionMkFile::default()
        };
        let action = pb::FileAction {
            input: if base.is_some() { 0 } else { -1 },
            secondary_input: -1,
            output: 0,
            action: Some(pb::file_action::Action::Mkfile(mkfile)),
        };
        let inputs: Vec<(&str, i64)> = base.iter().map(|base| (*base, 0)).collect();
        self.add(pb::op::Op::File(pb::FileOp { actions: vec![action] }), &inputs)
    }

    /// A shell's command over an op's output.
    pub fn run(&mut self, base: &str, command: &str) -> String {
        let exec = pb::ExecOp {
            meta: Some(pb::Meta {
                args: ["/bin/sh", "-c", command].map(str::to_owned).to_vec(),
                env: vec!["PATH=/bin:/usr/bin".to_owned()],
                cwd: "/".to_owned(),
                ..pb::Meta::default()
            }),
            mounts: vec![pb::Mount { input: 0, dest: "/".to_owned(), output: 0, ..pb::Mount::default() }],
            ..pb::ExecOp::default()
        };
        self.add(pb::op::Op::Exec(exec), &[(base, 0)])
    }

    /// The graph, whose result is an op's first output.
    pub fn result(mut self, digest: &str) -> pb::Definition {
        let last =
            pb::Op { inputs: vec![pb::Input { digest: digest.to_owned(), index: 0 }], ..pb::Op::default() };
        self.add_bytes(last.encode_to_vec());
        self.definition
    }
}

/// The digest of bytes.
pub fn digest(bytes: &[u8]) -> String {
    let hash: String = Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect();
    format!("sha256:{hash}")
}
