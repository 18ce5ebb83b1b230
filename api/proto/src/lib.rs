//! BuildKit's protobuf messages and gRPC services, under the names Lapstrake uses.
//!
//! What it is for: one place that decides which generated type belongs to which wire service, so that no other crate
//! names `bollard_buildkit_proto` (a re-export can then be replaced by our own `.proto` without touching callers).
//! What it is not for: meaning. Typed graphs live in `builder/llb`, session calls in `session`, routes in `api/server`.
//!
//! ```text
//!   module        protobuf package                 used by
//!   llb           pb                               builder/llb, builder/dockerfile
//!   control       moby.buildkit.v1                 api/server   (raw gRPC and /grpc; part of it from our own proto/)
//!   worker        moby.buildkit.v1.types           api/server   (part of control's answers)
//!   exporter      moby.exporter.v1                 session      (from our own proto/)
//!   gateway       moby.buildkit.v1.frontend        builder/engine's bridge
//!   apicaps       moby.buildkit.v1.apicaps         api/server, builder/engine
//!   sourcepolicy  moby.buildkit.v1.sourcepolicy    builder/llb
//!   policysession moby.buildkit.v1.sourcepolicy.policysession   session  (from our own proto/)
//!   newer         what pb lacks                    builder/llb  (from our own proto/)
//!   filesync      moby.filesync.v1                 session      (FileSync, FileSend)
//!   fsutil        fsutil.types                     session      (Packet, Stat)
//!   auth, secrets, sshforward, upload, health      session
//!   content       containerd.services.content.v1   session      (a client's OCI layouts; from our own proto/)
//!   google        google.protobuf, google.rpc      all
//! ```
//!
//! The messages are those of BuildKit v0.29 (see [`provenance`]). prost drops unknown fields: whoever hashes an LLB op must hash the
//! bytes that came, never a re-encoding.
#![forbid(unsafe_code)]

/// LLB: the build graph's ops (`pb.Op`, `pb.Definition`, …).
pub use bollard_buildkit_proto::pb as llb;

/// The `moby.buildkit.v1.Control` service: solve, status, prune, history, session. What bollard's lacks a field of is generated from
/// `proto/control.proto`, and goes before it.
#[allow(
    missing_docs,
    unreachable_pub,
    clippy::wildcard_imports,
    reason = "generated from proto/control.proto, which has the words"
)]
pub mod control {
    pub use bollard_buildkit_proto::moby::buildkit::v1::*;

    tonic::include_proto!("moby.buildkit.v1");

    pub use super::worker as types;
}

/// Worker records, GC policies and the BuildKit version, as `Control` reports them.
#[allow(
    missing_docs,
    unreachable_pub,
    clippy::wildcard_imports,
    reason = "generated from proto/worker.proto, which has the words"
)]
pub mod worker {
    pub use bollard_buildkit_proto::moby::buildkit::v1::types::*;

    tonic::include_proto!("moby.buildkit.v1.types");
}

/// The `moby.buildkit.v1.frontend.LLBBridge` service that an external frontend talks to.
pub mod gateway {
    pub use bollard_buildkit_proto::moby::buildkit::v1::frontend::*;
    /// Workers as [`PongResponse`] tells of them.
    pub use bollard_buildkit_proto::moby::buildkit::v1::types::WorkerRecord;
}

/// API capabilities, as negotiated between frontends and the solver.
pub use bollard_buildkit_proto::moby::buildkit::v1::apicaps;

/// Source policies: rules that rewrite or refuse sources.
pub use bollard_buildkit_proto::moby::buildkit::v1::sourcepolicy;

/// `fsutil.types`: the packets of the directory transfer protocol.
pub use bollard_buildkit_proto::fsutil::types as fsutil;

/// The `grpc.health.v1.Health` service, by which both ends of a session see that the other lives.
pub use bollard_buildkit_proto::health;

/// Which BuildKit the messages were generated from.
pub use bollard_buildkit_proto::provenance;

/// Well-known protobuf and RPC types (`Any`, `Timestamp`, `Status`).
pub use bollard_buildkit_proto::google;

/// The `moby.filesync.v1.FileSync` and `FileSend` services.
///
/// `FileSync.DiffCopy` always speaks [`fsutil::Packet`]. `FileSend.DiffCopy` is one method with two
/// languages, told apart by what the client attached under the exporter's id: a directory is sent as packets
/// ([`directory`](filesync::directory)), a file as plain bytes ([`bytes`](filesync::bytes)).
pub mod filesync {
    pub use bollard_buildkit_proto::moby::filesync::packet::{file_sync_client, file_sync_server};

    /// `FileSend` to a client that attached a directory (`-o type=local`): `fsutil` packets.
    pub mod directory {
        pub use bollard_buildkit_proto::moby::filesync::packet::{file_send_client, file_send_server};
    }

    /// `FileSend` to a client that attached a file (`-o type=tar|oci|docker`): chunks of bytes.
    pub mod bytes {
        pub use bollard_buildkit_proto::moby::filesync::v1::{
            BytesMessage, file_send_client, file_send_server,
        };
    }
}

/// The `moby.filesync.v1.Auth` service: registry credentials, and tokens made by the client.
pub mod auth {
    pub use bollard_buildkit_proto::moby::filesync::v1::{
        CredentialsRequest, CredentialsResponse, FetchTokenRequest, FetchTokenResponse,
        GetTokenAuthorityRequest, GetTokenAuthorityResponse, VerifyTokenAuthorityRequest,
        VerifyTokenAuthorityResponse, auth_client, auth_server,
    };
}

/// The `moby.buildkit.secrets.v1.Secrets` service.
pub mod secrets {
    pub use bollard_buildkit_proto::moby::buildkit::secrets::v1::*;
}

/// The `moby.sshforward.v1.SSH` service.
pub mod sshforward {
    pub use bollard_buildkit_proto::moby::sshforward::v1::*;
}

/// The `moby.upload.v1.Upload` service: a build context read from the client's standard input.
pub mod upload {
    pub use bollard_buildkit_proto::moby::upload::v1::*;
}

/// The `containerd.services.content.v1.Content` service: blobs of an OCI layout that a client offers.
#[allow(missing_docs, unreachable_pub, reason = "generated from proto/content.proto, which has the words")]
pub mod content {
    tonic::include_proto!("containerd.services.content.v1");
}

/// The `moby.buildkit.v1.sourcepolicy.policysession.PolicyVerifier` service: a client that decides about each source.
#[allow(
    missing_docs,
    unreachable_pub,
    clippy::large_enum_variant,
    reason = "generated from proto/policysession.proto, which has the words"
)]
pub mod policysession {
    tonic::include_proto!("moby.buildkit.v1.sourcepolicy.policysession");
}

/// The `moby.exporter.v1.Exporter` service: a client that says what is to be left behind when it has seen what was built.
#[allow(missing_docs, unreachable_pub, reason = "generated from proto/exporter.proto, which has the words")]
pub mod exporter {
    tonic::include_proto!("moby.exporter.v1");
}

/// What BuildKit 0.32 added to LLB.
#[allow(missing_docs, unreachable_pub, reason = "generated from proto/ops.proto, which has the words")]
pub mod newer {
    tonic::include_proto!("lapstrake.llb");
}
