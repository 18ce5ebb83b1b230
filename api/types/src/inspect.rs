//! `GET /images/{name}/json`.

use std::collections::BTreeMap;

use lapstrake_layerstore_oci::{ContainerConfig, Descriptor};
use serde::Serialize;
use serde_json::{Map, Value, json};

use crate::ApiVersion;

/// Everything that is known of one image; [`Self::to_json`] lays it out.
#[derive(Debug, Clone, PartialEq)]
pub struct ImageInspect {
    /// Its id.
    pub id: String,
    /// `name:tag` names.
    pub repo_tags: Vec<String>,
    /// `name@digest` names.
    pub repo_digests: Vec<String>,
    /// The image it was made from, or empty.
    pub parent: String,
    /// A message, or empty.
    pub comment: String,
    /// When it was made, as its config writes it.
    pub created: Option<String>,
    /// The container that was committed, or empty.
    pub container: String,
    /// That container's config.
    pub container_config: Option<ContainerConfig>,
    /// The Docker that made it, or empty.
    pub docker_version: String,
    /// Who made it, or empty.
    pub author: String,
    /// What a container of it runs.
    pub config: ContainerConfig,
    /// CPU architecture.
    pub architecture: String,
    /// CPU variant, or empty.
    pub variant: String,
    /// Operating system.
    pub os: String,
    /// Its version (Windows), or empty.
    pub os_version: String,
    /// Bytes in all its layers.
    pub size: i64,
    /// Where its top layer is.
    pub graph_driver: DriverData,
    /// Its layers.
    pub root_fs: InspectRootFs,
    /// What only this store knows.
    pub metadata: ImageMetadata,
    /// What its name points to, where the store keeps manifests.
    pub descriptor: Option<Descriptor>,
}

/// Where a graph driver keeps a layer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct DriverData {
    /// The driver's directories, by its own words; `null` for an image without layers.
    pub data: Option<BTreeMap<String, String>>,
    /// The driver.
    pub name: String,
}

/// The layers of an image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct InspectRootFs {
    /// Always `layers`.
    #[serde(rename = "Type", skip_serializing_if = "String::is_empty")]
    pub kind: String,
    /// Diff ids, bottom first.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub layers: Vec<String>,
}

/// What only this store knows of an image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct ImageMetadata {
    /// When a name was last put on it, RFC 3339; the zero time for never.
    pub last_tag_time: String,
}

const ZERO_TIME: &str = "0001-01-01T00:00:00Z";

impl ImageInspect {
    /// The layout that a version of the API has.
    pub fn to_json(&self, api: ApiVersion) -> Value {
        let mut out = Map::new();
        let mut put = |name: &str, value: Value| out.insert(name.to_owned(), value);
        // Fields that became optional in 1.52.
        let keep = |text: &str| !api.at_least(52) || !text.is_empty();
        put("Id", json!(self.id));
        put("RepoTags", json!(self.repo_tags));
        put("RepoDigests", json!(self.repo_digests));
        if keep(&self.parent) {
            put("Parent", json!(self.parent));
        }
        if keep(&self.comment) {
            put("Comment", json!(self.comment));
        }
        match &self.created {
            Some(created) => {
                put("Created", json!(created));
            }
            None if !api.at_least(44) => {
                put("Created", json!(ZERO_TIME));
            }
            None => {}
        }
        if !api.at_least(45) {
            put("Container", json!(self.container));
            let config = self.container_config.clone().unwrap_or_default();
            put("ContainerConfig", legacy_config(&config, LegacyConfig::Container));
        }
        if keep(&self.docker_version) {
            put("DockerVersion", json!(self.docker_version));
        }
        if keep(&self.author) {
            put("Author", json!(self.author));
        }
        put(
            "Config",
            if api.at_least(52) {
                json!(self.config)
            } else if api.at_least(50) {
                legacy_config(&self.config, LegacyConfig::Image)
            } else {
                legacy_config(&self.config, LegacyConfig::Container)
            },
        );
        put("Architecture", json!(self.architecture));
        if !self.variant.is_empty() {
            put("Variant", json!(self.variant));
        }
        put("Os", json!(self.os));
        if !self.os_version.is_empty() {
            put("OsVersion", json!(self.os_version));
        }
        put("Size", json!(self.size));
        if !api.at_least(44) {
            put("VirtualSize", json!(self.size));
        }
        put("GraphDriver", json!(self.graph_driver));
        put("RootFS", json!(self.root_fs));
        put("Metadata", json!(self.metadata));
        if api.at_least(48)
            && let Some(descriptor) = &self.descriptor
        {
            put("Descriptor", json!(descriptor));
        }
        Value::Object(out)
    }
}

/// Which fields of a config older versions always had.
#[derive(Clone, Copy, PartialEq, Eq)]
enum LegacyConfig {
    /// Up to 1.49: those of a container's config.
    Container,
    /// 1.50 and 1.51: those of an image's.
    Image,
}

/// The config with the fields that Go's struct once wrote even when empty.
fn legacy_config(config: &ContainerConfig, layout: LegacyConfig) -> Value {
    let empty: &[(&str, Value)] = &[
        ("Hostname", json!("")),
        ("Domainname", json!("")),
        ("User", json!("")),
        ("AttachStdin", json!(false)),
        ("AttachStdout", json!(false)),
        ("AttachStderr", json!(false)),
        ("Tty", json!(false)),
        ("OpenStdin", json!(false)),
        ("StdinOnce", json!(false)),
        ("Env", Value::Null),
        ("Cmd", Value::Null),
        ("Image", json!("")),
        ("Volumes", Value::Null),
        ("WorkingDir", json!("")),
        ("Entrypoint", Value::Null),
        ("OnBuild", Value::Null),
        ("Labels", Value::Null),
    ];
    const OF_IMAGES: [&str; 8] =
        ["Cmd", "Entrypoint", "Env", "Labels", "OnBuild", "User", "Volumes", "WorkingDir"];
    let mut out: Map<String, Value> = empty
        .iter()
        .filter(|(name, _)| layout == LegacyConfig::Container || OF_IMAGES.contains(name))
        .map(|(name, value)| ((*name).to_owned(), value.clone()))
        .collect();
    if let Value::Object(fields) = json!(config) {
        out.extend(fields);
    }
    Value::Object(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn image() -> ImageInspect {
        ImageInspect {
            id: "sha256:a".to_owned(),
            repo_tags: vec!["a:1".to_owned()],
            repo_digests: vec![],
            parent: String::new(),
            comment: String::new(),
            created: None,
            container: String::new(),
            container_config: None,
            docker_version: String::new(),
            author: String::new(),
            config: ContainerConfig { cmd: Some(vec!["sh".to_owned()]), ..ContainerConfig::default() },
            architecture: "amd64".to_owned(),
            variant: String::new(),
            os: "linux".to_owned(),
            os_version: String::new(),
            size: 5,
            graph_driver: DriverData { data: None, name: "vfs".to_owned() },
            root_fs: InspectRootFs { kind: "layers".to_owned(), layers: vec!["sha256:b".to_owned()] },
            metadata: ImageMetadata { last_tag_time: ZERO_TIME.to_owned() },
            descriptor: None,
        }
    }

    #[test]
    fn each_version_has_its_layout() {
        insta::assert_snapshot!(image().to_json(ApiVersion::v1(41)), @r#"{"Id":"sha256:a","RepoTags":["a:1"],"RepoDigests":[],"Parent":"","Comment":"","Created":"0001-01-01T00:00:00Z","Container":"","ContainerConfig":{"Hostname":"","Domainname":"","User":"","AttachStdin":false,"AttachStdout":false,"AttachStderr":false,"Tty":false,"OpenStdin":false,"StdinOnce":false,"Env":null,"Cmd":null,"Image":"","Volumes":null,"WorkingDir":"","Entrypoint":null,"OnBuild":null,"Labels":null},"DockerVersion":"","Author":"","Config":{"Hostname":"","Domainname":"","User":"","AttachStdin":false,"AttachStdout":false,"AttachStderr":false,"Tty":false,"OpenStdin":false,"StdinOnce":false,"Env":null,"Cmd":["sh"],"Image":"","Volumes":null,"WorkingDir":"","Entrypoint":null,"OnBuild":null,"Labels":null},"Architecture":"amd64","Os":"linux","Size":5,"VirtualSize":5,"GraphDriver":{"Data":null,"Name":"vfs"},"RootFS":{"Type":"layers","Layers":["sha256:b"]},"Metadata":{"LastTagTime":"0001-01-01T00:00:00Z"}}"#);
        insta::assert_snapshot!(image().to_json(ApiVersion::v1(51)), @r#"{"Id":"sha256:a","RepoTags":["a:1"],"RepoDigests":[],"Parent":"","Comment":"","DockerVersion":"","Author":"","Config":{"User":"","Env":null,"Cmd":["sh"],"Volumes":null,"WorkingDir":"","Entrypoint":null,"OnBuild":null,"Labels":null},"Architecture":"amd64","Os":"linux","Size":5,"GraphDriver":{"Data":null,"Name":"vfs"},"RootFS":{"Type":"layers","Layers":["sha256:b"]},"Metadata":{"LastTagTime":"0001-01-01T00:00:00Z"}}"#);
        insta::assert_snapshot!(image().to_json(ApiVersion::v1(52)), @r#"{"Id":"sha256:a","RepoTags":["a:1"],"RepoDigests":[],"Config":{"Cmd":["sh"]},"Architecture":"amd64","Os":"linux","Size":5,"GraphDriver":{"Data":null,"Name":"vfs"},"RootFS":{"Type":"layers","Layers":["sha256:b"]},"Metadata":{"LastTagTime":"0001-01-01T00:00:00Z"}}"#);
    }
}
