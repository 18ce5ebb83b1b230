//! Turns the `.proto` files that `bollard-buildkit-proto` lacks into Rust, without `protoc`.

fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo::rerun-if-changed=proto");
    let files = protox::compile(["content.proto", "ops.proto", "policysession.proto"], ["proto"])?;
    tonic_prost_build::configure()
        // What stubs/ declares is bollard's.
        .extern_path(".pb", "::bollard_buildkit_proto::pb")
        .extern_path(".moby.buildkit.v1.frontend", "::bollard_buildkit_proto::moby::buildkit::v1::frontend")
        .extern_path(
            ".moby.buildkit.v1.sourcepolicy.PolicyAction",
            "::bollard_buildkit_proto::moby::buildkit::v1::sourcepolicy::PolicyAction",
        )
        .compile_fds(files)?;
    Ok(())
}
