//! A `/build` request in the words of BuildKit's Dockerfile frontend, as Moby translates it
//! (`daemon/internal/builder-next/builder.go`), so that both builders' clients get one meaning.

use std::collections::BTreeMap;

use lapstrake_api_types::{BuildQuery, HostGateway, NetworkMode, Ulimit};

/// The frontend's options; `context` is the URL of a remote context, `gateway` what `host-gateway` means.
pub(crate) fn frontend_attrs(
    query: &BuildQuery,
    context: Option<&str>,
    gateway: &HostGateway,
) -> BTreeMap<String, String> {
    let mut attrs = BTreeMap::new();
    let mut set = |name: &str, value: String| attrs.insert(name.to_owned(), value);
    if let Some(url) = context {
        set("context", url.to_owned());
    }
    if let Some(target) = &query.target {
        set("target", target.clone());
    }
    if let Some(path) = &query.dockerfile {
        set("filename", path.clone());
    }
    for (name, value) in &query.build_args {
        // Named without a value: the client's environment has none either.
        if let Some(value) = value {
            set(&format!("build-arg:{name}"), value.clone());
        }
    }
    for (name, value) in &query.labels {
        set(&format!("label:{name}"), value.clone());
    }
    if query.no_cache {
        set("no-cache", String::new());
    }
    set("image-resolve-mode", if query.pull { "pull" } else { "default" }.to_owned());
    if !query.platforms.is_empty() {
        let platforms: Vec<String> = query.platforms.iter().map(ToString::to_string).collect();
        set("platform", platforms.join(","));
    }
    match query.network {
        NetworkMode::Default => {}
        NetworkMode::None => drop(set("force-network-mode", "none".to_owned())),
        NetworkMode::Host => drop(set("force-network-mode", "host".to_owned())),
    }
    if !query.extra_hosts.is_empty() {
        let hosts: Vec<String> =
            query.extra_hosts.iter().flat_map(|entry| entry.frontend_hosts(gateway)).collect();
        set("add-hosts", hosts.join(","));
    }
    if let Some(bytes) = query.shm_size {
        set("shm-size", bytes.to_string());
    }
    if !query.ulimits.is_empty() {
        let ulimits: Vec<String> = query.ulimits.iter().map(Ulimit::to_string).collect();
        set("ulimit", ulimits.join(","));
    }
    if let Some(parent) = &query.cgroup_parent {
        set("cgroup-parent", parent.clone());
    }
    attrs
}

#[cfg(test)]
mod tests {
    use lapstrake_api_types::{ApiVersion, Form};

    use super::*;

    fn attrs(query: &str) -> BTreeMap<String, String> {
        let query = BuildQuery::parse(&Form::parse(query).unwrap(), ApiVersion::MAX).unwrap();
        frontend_attrs(&query, None, &HostGateway::from(std::net::IpAddr::from([10, 9, 0, 1])))
    }

    #[test]
    fn every_parameter_of_the_dockerfile_has_its_option() {
        let attrs = attrs(
            "version=2&target=t&dockerfile=d/Dockerfile&buildargs={\"A\":\"1\",\"B\":null}&labels={\"l\":\"v\"}&nocache=1&pull=1\
             &platform=linux/arm64,linux/amd64&networkmode=none&extrahosts=a:1.2.3.4&extrahosts=b:::1&shmsize=64\
             &ulimits=[{\"Name\":\"nofile\",\"Soft\":1,\"Hard\":2}]&cgroupparent=/x",
        );
        let text: Vec<String> = attrs.iter().map(|(name, value)| format!("{name}={value}")).collect();
        insta::assert_snapshot!(text.join("\n"), @"
        add-hosts=a=1.2.3.4,b=::1
        build-arg:A=1
        cgroup-parent=/x
        filename=d/Dockerfile
        force-network-mode=none
        image-resolve-mode=pull
        label:l=v
        no-cache=
        platform=linux/arm64,linux/amd64
        shm-size=64
        target=t
        ulimit=nofile=1:2
        ");
    }

    #[test]
    fn what_nobody_said_is_left_to_the_frontend() {
        let attrs = attrs("");
        assert_eq!(
            attrs.into_iter().collect::<Vec<_>>(),
            [("image-resolve-mode".to_owned(), "default".to_owned())]
        );
    }

    #[test]
    fn the_hosts_gateway_has_the_machines_addresses() {
        let hosts = |gateway: &HostGateway| {
            let form = Form::parse("extrahosts=a:host-gateway&extrahosts=b:1.2.3.4").unwrap();
            let query = BuildQuery::parse(&form, ApiVersion::MAX).unwrap();
            frontend_attrs(&query, None, gateway)["add-hosts"].clone()
        };
        let one = HostGateway::from(std::net::IpAddr::from([10, 9, 0, 1]));
        assert_eq!(hosts(&one), "a=10.9.0.1,b=1.2.3.4");
        let both = HostGateway::new(vec!["10.0.0.1".parse().unwrap(), "fd00::1".parse().unwrap()]);
        let both = both.unwrap().unwrap();
        assert_eq!(hosts(&both), "a=10.0.0.1,a=fd00::1,b=1.2.3.4");
        HostGateway::new(vec!["10.0.0.1".parse().unwrap(), "10.0.0.2".parse().unwrap()]).unwrap_err();
    }
}
