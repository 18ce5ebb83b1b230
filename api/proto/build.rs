//! Turns the `.proto` files that `bollard-buildkit-proto` lacks into Rust, without `protoc`.

/// Messages of `moby.buildkit.v1` that are bollard's.
const CONTROL: [&str; 16] = [
    "DiskUsageRequest",
    "DiskUsageResponse",
    "PruneRequest",
    "UsageRecord",
    "CacheOptions",
    "Exporter",
    "SolveResponse",
    "StatusRequest",
    "StatusResponse",
    "BytesMessage",
    "ListWorkersRequest",
    "InfoRequest",
    "BuildHistoryRequest",
    "BuildHistoryEvent",
    "UpdateBuildHistoryRequest",
    "UpdateBuildHistoryResponse",
];

fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo::rerun-if-changed=proto");
    // A client's store is asked a part of it; what else is asked is unknown there.
    tonic_prost_build::configure()
        .generate_default_stubs(true)
        .compile_fds(protox::compile(["content.proto"], ["proto"])?)?;
    let files = ["control.proto", "exporter.proto", "ops.proto", "policysession.proto"];
    let files = protox::compile(files, ["proto"])?;
    let buildkit = "::bollard_buildkit_proto::moby::buildkit::v1";
    let mut builder = tonic_prost_build::configure();
    // What stubs/ declares is bollard's.
    for message in CONTROL {
        builder =
            builder.extern_path(format!(".moby.buildkit.v1.{message}"), format!("{buildkit}::{message}"));
    }
    builder
        .extern_path(".pb", "::bollard_buildkit_proto::pb")
        .extern_path(".moby.buildkit.v1.frontend", format!("{buildkit}::frontend"))
        .extern_path(".moby.buildkit.v1.types.GCPolicy", format!("{buildkit}::types::GcPolicy"))
        .extern_path(".moby.buildkit.v1.types.CDIDevice", format!("{buildkit}::types::CdiDevice"))
        .extern_path(".moby.buildkit.v1.sourcepolicy.Policy", format!("{buildkit}::sourcepolicy::Policy"))
        .extern_path(
            ".moby.buildkit.v1.sourcepolicy.PolicyAction",
            format!("{buildkit}::sourcepolicy::PolicyAction"),
        )
        .compile_fds(files)?;
    Ok(())
}
