//! Which door a path leads to.

use http::Method;
use lapstrake_api_types::ApiVersion;

/// A door. Image names keep their slashes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Route {
    Options,
    Ping,
    Version,
    Info,
    Events,
    DiskUsage,
    Auth,
    Session,
    Grpc,
    Build,
    BuildCancel,
    BuildPrune,
    Distribution(String),
    ImageList,
    ImageSearch,
    ImageCreate,
    ImageLoad,
    ImagePrune,
    ImageSave,
    ImageSaveOne(String),
    ImageInspect(String),
    ImageHistory(String),
    ImagePush(String),
    ImageTag(String),
    ImageDelete(String),
    /// This daemon's own.
    History(HistoryDoor),
    /// Containers, networks, volumes, plugins: what of them is answered though there are none.
    Absent(Absent),
    /// Known to Moby, and not here.
    NotHere(&'static str),
    NotFound,
}

/// What is asked of the build history, by a build's id or its beginning.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum HistoryDoor {
    List,
    Inspect(String),
    Log(String),
    /// Empty: all.
    Remove(String),
}

/// Objects of which there are none.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Absent {
    ContainerList,
    ContainerPrune,
    Container(String),
    NetworkList,
    NetworkPrune,
    Network(String),
    VolumeList,
    VolumePrune,
    Volume(String),
    PluginList,
    Plugin(String),
}

/// Splits `/v1.41/images/json` into `1.41` and `/images/json`; a path without version has none.
pub(crate) fn split_version(path: &str) -> (Option<&str>, &str) {
    let Some(rest) = path.strip_prefix("/v") else { return (None, path) };
    let end = rest.find('/').unwrap_or(rest.len());
    let version = &rest[..end];
    if version.is_empty() || !version.bytes().all(|b| b.is_ascii_digit() || b == b'.') {
        return (None, path);
    }
    (Some(version), &rest[end..])
}

/// The door of a method and a path without version.
pub(crate) fn route(method: &Method, path: &str, api: ApiVersion) -> Route {
    if *method == Method::OPTIONS {
        return Route::Options;
    }
    let get = *method == Method::GET;
    let post = *method == Method::POST;
    if path == "/_ping" && (get || *method == Method::HEAD) {
        return Route::Ping;
    }
    match path {
        "/version" if get => Route::Version,
        "/info" if get => Route::Info,
        "/events" if get => Route::Events,
        "/system/df" if get && api.at_least(25) => Route::DiskUsage,
        "/auth" if post => Route::Auth,
        "/session" if post => Route::Session,
        "/grpc" if post => Route::Grpc,
        "/build" if post => Route::Build,
        "/build/cancel" if post => Route::BuildCancel,
        "/build/prune" if post => Route::BuildPrune,
        _ => {
            let rest = path.strip_prefix('/').unwrap_or(path);
            let (family, rest) = rest.split_once('/').unwrap_or((rest, ""));
            match family {
                "images" => images(method, rest, api),
                "lapstrake" => history(method, rest).map_or(Route::NotFound, Route::History),
                "distribution" if get => match rest.strip_suffix("/json") {
                    Some(name) if !name.is_empty() => Route::Distribution(name.to_owned()),
                    _ => Route::NotFound,
                },
                "containers" => containers(method, rest, api),
                "networks" => networks(method, rest, api),
                "volumes" => volumes(method, rest, api),
                "plugins" => plugins(method, rest),
                "commit" if post => Route::NotHere("committing containers"),
                "exec" => Route::NotHere("running processes in containers"),
                "swarm" | "nodes" | "services" | "tasks" | "secrets" | "configs" => {
                    Route::NotHere("swarm mode")
                }
                _ => Route::NotFound,
            }
        }
    }
}

fn history(method: &Method, rest: &str) -> Option<HistoryDoor> {
    let rest = rest.strip_prefix("v1/builds")?;
    let id = rest.strip_prefix('/').unwrap_or(rest);
    if id.len() == rest.len() && !id.is_empty() {
        return None;
    }
    match (method.as_str(), id.strip_suffix("/log").filter(|id| !id.is_empty())) {
        ("GET", Some(id)) => Some(HistoryDoor::Log(id.to_owned())),
        ("GET", None) if id.is_empty() => Some(HistoryDoor::List),
        ("GET", None) => Some(HistoryDoor::Inspect(id.to_owned())),
        ("DELETE", None) => Some(HistoryDoor::Remove(id.to_owned())),
        _ => None,
    }
}

fn images(method: &Method, rest: &str, api: ApiVersion) -> Route {
    let named = |suffix: &str| rest.strip_suffix(suffix).filter(|name| !name.is_empty()).map(str::to_owned);
    match (method.as_str(), rest) {
        ("GET", "json") => Route::ImageList,
        ("GET", "search") => Route::ImageSearch,
        ("GET", "get") => Route::ImageSave,
        ("GET", _) => {
            if let Some(name) = named("/get") {
                Route::ImageSaveOne(name)
            } else if let Some(name) = named("/history") {
                Route::ImageHistory(name)
            } else if let Some(name) = named("/json") {
                Route::ImageInspect(name)
            } else {
                Route::NotFound
            }
        }
        ("POST", "load") => Route::ImageLoad,
        ("POST", "create") => Route::ImageCreate,
        ("POST", "prune") if api.at_least(25) => Route::ImagePrune,
        ("POST", _) => {
            if let Some(name) = named("/push") {
                Route::ImagePush(name)
            } else if let Some(name) = named("/tag") {
                Route::ImageTag(name)
            } else {
                Route::NotFound
            }
        }
        ("DELETE", name) => Route::ImageDelete(name.to_owned()),
        _ => Route::NotFound,
    }
}

fn first(rest: &str) -> String {
    rest.split('/').next().unwrap_or_default().to_owned()
}

fn containers(method: &Method, rest: &str, api: ApiVersion) -> Route {
    match (method.as_str(), rest) {
        ("GET", "json" | "ps") => Route::Absent(Absent::ContainerList),
        ("POST", "prune") if api.at_least(25) => Route::Absent(Absent::ContainerPrune),
        ("POST", "create") => Route::NotHere("running containers"),
        (_, "") => Route::NotFound,
        ("GET" | "HEAD" | "POST" | "PUT" | "DELETE", _) => Route::Absent(Absent::Container(first(rest))),
        _ => Route::NotFound,
    }
}

fn networks(method: &Method, rest: &str, api: ApiVersion) -> Route {
    match (method.as_str(), rest) {
        ("GET", "") => Route::Absent(Absent::NetworkList),
        ("POST", "prune") if api.at_least(25) => Route::Absent(Absent::NetworkPrune),
        ("POST", "create") => Route::NotHere("networks"),
        ("GET" | "POST" | "DELETE", name) if !name.is_empty() => Route::Absent(Absent::Network(first(name))),
        _ => Route::NotFound,
    }
}

fn volumes(method: &Method, rest: &str, api: ApiVersion) -> Route {
    match (method.as_str(), rest) {
        ("GET", "") => Route::Absent(Absent::VolumeList),
        ("POST", "prune") if api.at_least(25) => Route::Absent(Absent::VolumePrune),
        ("POST", "create") => Route::NotHere("volumes"),
        ("GET" | "PUT" | "DELETE", name) if !name.is_empty() => Route::Absent(Absent::Volume(first(name))),
        _ => Route::NotFound,
    }
}

fn plugins(method: &Method, rest: &str) -> Route {
    match (method.as_str(), rest) {
        ("GET", "") => Route::Absent(Absent::PluginList),
        ("GET", "privileges") | ("POST", "pull" | "create") => Route::NotHere("plugins"),
        ("GET" | "POST" | "DELETE", name) if !name.is_empty() => {
            Route::Absent(Absent::Plugin(name.trim_end_matches("/json").to_owned()))
        }
        _ => Route::NotFound,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_split_off_only_where_they_are_versions() {
        assert_eq!(split_version("/v1.41/images/json"), (Some("1.41"), "/images/json"));
        assert_eq!(split_version("/v1.41"), (Some("1.41"), ""));
        assert_eq!(split_version("/version"), (None, "/version"));
        assert_eq!(split_version("/v/images/json"), (None, "/v/images/json"));
        assert_eq!(split_version("/volumes"), (None, "/volumes"));
    }

    #[test]
    fn names_keep_their_slashes() {
        let get = |path| route(&Method::GET, path, ApiVersion::MAX);
        assert_eq!(get("/images/a/b:1/json"), Route::ImageInspect("a/b:1".to_owned()));
        assert_eq!(get("/images/r:5000/x/history"), Route::ImageHistory("r:5000/x".to_owned()));
        assert_eq!(get("/images/json"), Route::ImageList);
        assert_eq!(get("/images/json/json"), Route::ImageInspect("json".to_owned()));
        assert_eq!(get("/images/get/get"), Route::ImageSaveOne("get".to_owned()));
        assert_eq!(get("/distribution/a/b/json"), Route::Distribution("a/b".to_owned()));
        let delete = route(&Method::DELETE, "/images/a/b", ApiVersion::MAX);
        assert_eq!(delete, Route::ImageDelete("a/b".to_owned()));
    }

    #[test]
    fn builds_have_doors_of_their_own() {
        let open = |method: Method, path| match route(&method, path, ApiVersion::MAX) {
            Route::History(door) => Some(door),
            _ => None,
        };
        assert_eq!(open(Method::GET, "/lapstrake/v1/builds"), Some(HistoryDoor::List));
        assert_eq!(open(Method::GET, "/lapstrake/v1/builds/x"), Some(HistoryDoor::Inspect("x".to_owned())));
        assert_eq!(open(Method::GET, "/lapstrake/v1/builds/x/log"), Some(HistoryDoor::Log("x".to_owned())));
        assert_eq!(open(Method::DELETE, "/lapstrake/v1/builds/x"), Some(HistoryDoor::Remove("x".to_owned())));
        assert_eq!(open(Method::DELETE, "/lapstrake/v1/builds"), Some(HistoryDoor::Remove(String::new())));
        for (method, path) in [
            (Method::GET, "/lapstrake/v1/buildsx"),
            (Method::GET, "/lapstrake/v2/builds"),
            (Method::POST, "/lapstrake/v1/builds"),
            (Method::DELETE, "/lapstrake/v1/builds/x/log"),
        ] {
            assert_eq!(open(method, path), None, "{path}");
        }
    }

    #[test]
    fn methods_matter() {
        let post = |path| route(&Method::POST, path, ApiVersion::MAX);
        assert_eq!(post("/_ping"), Route::NotFound);
        assert_eq!(post("/version"), Route::NotFound);
        assert_eq!(post("/images/prune"), Route::ImagePrune);
        assert_eq!(route(&Method::POST, "/images/prune", ApiVersion::v1(24)), Route::NotFound);
        assert_eq!(post("/containers/x/start"), Route::Absent(Absent::Container("x".to_owned())));
        assert_eq!(post("/containers/create"), Route::NotHere("running containers"));
        assert_eq!(post("/nope"), Route::NotFound);
        assert_eq!(route(&Method::HEAD, "/_ping", ApiVersion::MAX), Route::Ping);
    }
}
