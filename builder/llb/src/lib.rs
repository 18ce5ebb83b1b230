//! LLB, BuildKit's build graph: typed vertices, their protobuf form, and a builder that writes the same bytes as BuildKit's own client.
//!
//! **For:** reading a definition that came over the wire into a checked [`Graph`], making one ([`GraphBuilder`]), and telling what an op is for
//! the cache ([`cache_key`]).
//! **Not for:** running anything, looking keys up (`builder/solver`), or Dockerfiles (`builder/dockerfile`). No I/O.
//!
//! ```text
//!   GraphBuilder ──marshal──► Definition ⇄ pb::Definition (wire)
//!   source·run·file·merge·diff    │ raw op bytes, in topological order, then a terminal op that names the result
//!                                 ▼
//!                               Graph: Vertex { digest, op, raw, inputs, metadata, name }, target: Edge
//! ```
//!
//! A vertex *is* its bytes: its digest is the SHA-256 of the op as it was received, and inputs name vertices by that digest. The bytes are
//! kept, never re-encoded, because prost drops fields that it does not know.
#![forbid(unsafe_code)]

mod build;
pub mod cache_key;
pub mod caps;
mod definition;
mod dump;
mod error;
mod gopath;
mod graph;
mod metadata;
mod names;
mod rewrite;
mod source_policy;
mod validate;

pub use build::{
    BuiltDefinition, CacheSharing, CopyAction, CopyMode, Defaults, Device, EnvList, ExecOptions, ExecOutputs,
    FileAction, FileOptions, GitSource, GitSsh, GraphBuilder, HostIp, HttpSource, ImageSource, LocalSource,
    Mkdir, Mkfile, Mount, MountKind, OciLayoutSource, OpOptions, Output, Owner, OwnerId, ProxyEnv,
    ResolveMode, Rm, SecretMount, SourceMap, SourceMapId, SshMount, State, StateMeta, Symlink, Ulimit,
};
pub use definition::Definition;
pub use dump::{dump, dump_json};
pub use error::Error;
pub use gopath::{clean_path, has_wildcards, join_path};
pub use graph::{Edge, Graph, Limits, Vertex, VertexId};
pub use metadata::{Metadata, ProgressGroup};
pub use source_policy::{PolicyError, SourcePolicies};

/// The protobuf messages themselves (`pb.Op` and everything below it).
pub use lapstrake_api_proto::llb as pb;
/// An op that gives its inputs on as its outputs.
pub use lapstrake_api_proto::newer::Passthrough;
