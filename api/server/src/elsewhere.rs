//! What is not here: objects of which there are none, and endpoints that do other things than building.

use http::StatusCode;
use lapstrake_api_types::Filters;
use serde_json::json;

use crate::{
    ApiError,
    body::{self, Answer},
    request::DoorRequest,
    route::Absent,
};

/// A 501 that says what is not here.
pub(crate) fn not_here(what: &str) -> ApiError {
    ApiError::not_implemented(format!(
        "{what}: not supported: Lapstrake builds and moves images, and runs no containers"
    ))
}

/// Docker Hub's search, which needs an index server and not a registry.
pub(crate) fn search() -> ApiError {
    ApiError::not_implemented("searching Docker Hub: not supported: use https://hub.docker.com/search")
}

/// Empty lists, prunes that free nothing, and 404 in Moby's words.
pub(crate) fn absent(request: &DoorRequest, absent: Absent) -> Result<Answer, ApiError> {
    // Also where nothing can match, a filter that cannot be read is an error.
    Filters::parse(request.form.get("filters"))?;
    let not_found = |message: String| Err(ApiError::not_found(message));
    match absent {
        Absent::ContainerList | Absent::NetworkList | Absent::PluginList => Ok(body::ok(&json!([]))),
        Absent::VolumeList => Ok(body::ok(&json!({ "Volumes": [], "Warnings": null }))),
        Absent::ContainerPrune => Ok(body::ok(&json!({ "ContainersDeleted": null, "SpaceReclaimed": 0 }))),
        Absent::NetworkPrune => Ok(body::ok(&json!({ "NetworksDeleted": null }))),
        Absent::VolumePrune => Ok(body::ok(&json!({ "VolumesDeleted": null, "SpaceReclaimed": 0 }))),
        // `docker inspect X` and `docker volume rm -f X` ask like this.
        Absent::Volume(_) if request.method == http::Method::DELETE && request.form.flag("force") => {
            Ok(body::status(StatusCode::NO_CONTENT))
        }
        Absent::Container(name) => not_found(format!("No such container: {name}")),
        Absent::Network(name) => not_found(format!("network {name} not found")),
        Absent::Volume(name) => not_found(format!("get {name}: no such volume")),
        Absent::Plugin(name) => not_found(format!("plugin {name:?} not found")),
    }
}
