//! The daemon as BuildKit's clients see it: one worker.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use lapstrake_api_proto::{
    llb,
    worker::{BuildkitVersion, CdiDevice, GcPolicy, WorkerRecord},
};
use lapstrake_api_types::HostGateway;
use lapstrake_builder_cache::PruneRequest;
use lapstrake_builder_engine::{DOCKERFILE_VERSION, Engine};
use lapstrake_layerstore_oci::Platform;
use lapstrake_layerstore_store::Collector;
use tonic::Status;

use crate::{SystemFacts, grpc::filter::Filters};

/// The BuildKit whose interface this is.
const BUILDKIT: &str = "v0.32.2";
/// Keys of labels begin so.
const LABEL: &str = "org.mobyproject.buildkit.worker.";

/// What gRPC's clients work with.
pub struct Worker {
    /// Runs builds.
    pub engine: Engine,
    /// Frees what pruning leaves.
    pub collector: Arc<Collector>,
    /// The rules by which the cache is pruned by itself, in the order in which they are applied.
    pub rules: Vec<PruneRequest>,
    /// What `host-gateway` means in builds, if it is not the address at which steps reach the machine.
    pub host_gateway: Option<HostGateway>,
    /// Whether images that are exported stay in the image store, where it is not said.
    pub keeps_images: bool,
}

/// What is told of the program. Clients compare the version with those of BuildKit; whose it is follows as semantic versioning's build metadata.
pub(super) fn version(facts: &SystemFacts) -> BuildkitVersion {
    BuildkitVersion {
        package: "lapstrake".to_owned(),
        version: format!("{BUILDKIT}+lapstrake.{}", facts.version),
        revision: facts.git_commit.clone(),
        dockerfile_version: DOCKERFILE_VERSION.to_owned(),
    }
}

/// The workers that a filter means: the one there is, or none.
pub(super) async fn list(
    worker: &Worker,
    facts: &SystemFacts,
    filter: &[String],
) -> Result<Vec<WorkerRecord>, Status> {
    let labels = labels(worker, facts).await;
    let is_meant = Filters::parse(filter)?.mean(|field| match field {
        "id" => Some(&facts.id),
        field => field.strip_prefix("labels.").and_then(|name| labels.get(name)).map(String::as_str),
    });
    if !is_meant {
        return Ok(Vec::new());
    }
    let platforms = worker.engine.platforms().await;
    let engine = worker.engine.clone();
    // Files are read.
    let devices = super::blocking(move || Ok(engine.devices())).await?;
    Ok(vec![WorkerRecord {
        id: facts.id.clone(),
        labels: labels.into_iter().collect(),
        platforms: platforms.into_iter().map(platform).collect(),
        gc_policy: worker.rules.iter().map(policy).collect(),
        buildkit_version: Some(version(facts)),
        cdi_devices: devices.names().map(|(name, auto_allow)| device(name, auto_allow)).collect(),
    }])
}

async fn labels(worker: &Worker, facts: &SystemFacts) -> BTreeMap<String, String> {
    // Clients put it into the hosts files of their builds, and take one.
    let gateway = match worker.host_gateway.as_ref().and_then(|gateway| gateway.addresses().first()) {
        Some(address) => *address,
        None => worker.engine.host_address().await,
    };
    let hostname = rustix::system::uname().nodename().to_string_lossy().into_owned();
    let labels = [
        ("executor", facts.default_runtime.clone()),
        // That there is one tells buildx's docker driver that all outputs and several platforms work.
        ("snapshotter", facts.driver.clone()),
        ("hostname", hostname),
        ("network", "sandbox".to_owned()),
        ("oci.process-mode", "sandbox".to_owned()),
        ("selinux.enabled", "false".to_owned()),
        ("moby.host-gateway-ip", gateway.to_string()),
    ];
    labels.into_iter().map(|(name, value)| (format!("{LABEL}{name}"), value)).collect()
}

fn platform(platform: Platform) -> llb::Platform {
    llb::Platform {
        architecture: platform.architecture,
        os: platform.os,
        variant: platform.variant,
        os_version: platform.os_version,
        os_features: platform.os_features,
    }
}

fn policy(rule: &PruneRequest) -> GcPolicy {
    let bytes = |bytes: u64| i64::try_from(bytes).unwrap_or(i64::MAX);
    let nanos = |time: Duration| i64::try_from(time.as_nanos()).unwrap_or(i64::MAX);
    GcPolicy {
        all: rule.all,
        keep_duration: rule.unused_for.map_or(0, nanos),
        filters: rule.filter.expressions(),
        reserved_space: bytes(rule.bound.reserved),
        max_used_space: bytes(rule.bound.max_used),
        min_free_space: bytes(rule.bound.min_free),
    }
}

fn device(name: &str, auto_allow: bool) -> CdiDevice {
    CdiDevice { name: name.to_owned(), auto_allow, ..CdiDevice::default() }
}
