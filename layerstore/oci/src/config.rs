//! Docker's image config: what an image runs and how it came to be.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Deserializer, Serialize, Serializer, ser::SerializeMap};
use serde_json::Value;

use crate::{DiffId, OciError, Platform, Timestamp, descriptor::null_default, gojson};

/// An image config document, OCI's with Docker's additions.
///
/// Every field that is not known here, at every level, is kept in `extra` and written back. Serde writes the known
/// fields in the order of BuildKit's Go struct (`DockerOCIImage`), leaving out what Go's `omitempty` leaves out;
/// [`ImageConfig::to_json`] writes the document as BuildKit and Moby store it, whose digest is the image's id.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct ImageConfig {
    /// When the image was made.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub created: Option<Timestamp>,
    /// Who made it.
    #[serde(default, deserialize_with = "null_default", skip_serializing_if = "String::is_empty")]
    pub author: String,
    /// CPU architecture in Go's names.
    #[serde(default, deserialize_with = "null_default")]
    pub architecture: String,
    /// Operating system in Go's names.
    #[serde(default, deserialize_with = "null_default")]
    pub os: String,
    /// Windows build.
    #[serde(
        rename = "os.version",
        default,
        deserialize_with = "null_default",
        skip_serializing_if = "String::is_empty"
    )]
    pub os_version: String,
    /// Required features of the operating system.
    #[serde(
        rename = "os.features",
        default,
        deserialize_with = "null_default",
        skip_serializing_if = "Vec::is_empty"
    )]
    pub os_features: Vec<String>,
    /// CPU variant.
    #[serde(default, deserialize_with = "null_default", skip_serializing_if = "String::is_empty")]
    pub variant: String,
    /// The layers' uncompressed digests.
    #[serde(default, deserialize_with = "null_default")]
    pub rootfs: RootFs,
    /// How each layer (and empty step) was made.
    #[serde(default, deserialize_with = "null_default", skip_serializing_if = "Vec::is_empty")]
    pub history: Vec<History>,
    /// What a container of the image runs.
    #[serde(default, deserialize_with = "null_default")]
    pub config: ContainerConfig,
    /// The parent image, in images built by the classic builder.
    #[serde(default, deserialize_with = "null_default", skip_serializing_if = "String::is_empty")]
    pub parent: String,
    /// A message, in committed and imported images.
    #[serde(default, deserialize_with = "null_default", skip_serializing_if = "String::is_empty")]
    pub comment: String,
    /// The container that was committed.
    #[serde(default, deserialize_with = "null_default", skip_serializing_if = "String::is_empty")]
    pub container: String,
    /// The committed container's own config.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub container_config: Option<ContainerConfig>,
    /// The Docker that made it.
    #[serde(default, deserialize_with = "null_default", skip_serializing_if = "String::is_empty")]
    pub docker_version: String,
    /// Fields this crate does not know.
    #[serde(flatten)]
    pub extra: BTreeMap<String, Value>,
}

/// What a container runs.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct ContainerConfig {
    /// User and group, as names or numbers.
    #[serde(default, deserialize_with = "null_default", skip_serializing_if = "String::is_empty")]
    pub user: String,
    /// Ports as `80/tcp`.
    #[serde(
        default,
        deserialize_with = "key_set",
        serialize_with = "write_key_set",
        skip_serializing_if = "BTreeSet::is_empty"
    )]
    pub exposed_ports: BTreeSet<String>,
    /// Environment as `KEY=value`, in order.
    #[serde(default, deserialize_with = "null_default", skip_serializing_if = "Vec::is_empty")]
    pub env: Vec<String>,
    /// The entrypoint; an empty list differs from none in what a build inherits, but both are written as none.
    #[serde(default, skip_serializing_if = "none_or_empty")]
    pub entrypoint: Option<Vec<String>>,
    /// The command; an empty list differs from none in what a build inherits, but both are written as none.
    #[serde(default, skip_serializing_if = "none_or_empty")]
    pub cmd: Option<Vec<String>>,
    /// Paths that are volumes.
    #[serde(
        default,
        deserialize_with = "key_set",
        serialize_with = "write_key_set",
        skip_serializing_if = "BTreeSet::is_empty"
    )]
    pub volumes: BTreeSet<String>,
    /// Working directory.
    #[serde(default, deserialize_with = "null_default", skip_serializing_if = "String::is_empty")]
    pub working_dir: String,
    /// Labels.
    #[serde(default, deserialize_with = "null_default", skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
    /// Signal that stops the container.
    #[serde(default, deserialize_with = "null_default", skip_serializing_if = "String::is_empty")]
    pub stop_signal: String,
    /// Windows: the command is one already escaped string.
    #[serde(default, deserialize_with = "null_default", skip_serializing_if = "is_false")]
    pub args_escaped: bool,
    /// How health is checked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub healthcheck: Option<Healthcheck>,
    /// Instructions for builds from this image.
    #[serde(default, deserialize_with = "null_default", skip_serializing_if = "Vec::is_empty")]
    pub on_build: Vec<String>,
    /// Shell of the shell forms.
    #[serde(default, deserialize_with = "null_default", skip_serializing_if = "Vec::is_empty")]
    pub shell: Vec<String>,
    /// Seconds to wait before killing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stop_timeout: Option<i64>,
    /// Host name (classic builder).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hostname: Option<String>,
    /// Domain name (classic builder).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub domainname: Option<String>,
    /// Hardware address (classic builder).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mac_address: Option<String>,
    /// The image the container was made from (classic builder).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image: Option<String>,
    /// Fields this crate does not know.
    #[serde(flatten)]
    pub extra: BTreeMap<String, Value>,
}

/// How a container's health is checked. Durations are nanoseconds, zero meaning "inherit".
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct Healthcheck {
    /// `["NONE"]`, `["CMD", …]`, `["CMD-SHELL", command]`, or empty to inherit.
    #[serde(default, deserialize_with = "null_default", skip_serializing_if = "Vec::is_empty")]
    pub test: Vec<String>,
    /// Time between checks.
    #[serde(default, deserialize_with = "null_default", skip_serializing_if = "is_zero")]
    pub interval: i64,
    /// Time after which a check has hung.
    #[serde(default, deserialize_with = "null_default", skip_serializing_if = "is_zero")]
    pub timeout: i64,
    /// Time in which failures do not count.
    #[serde(default, deserialize_with = "null_default", skip_serializing_if = "is_zero")]
    pub start_period: i64,
    /// Time between checks during the start period.
    #[serde(default, deserialize_with = "null_default", skip_serializing_if = "is_zero")]
    pub start_interval: i64,
    /// Failures in a row that make a container unhealthy.
    #[serde(default, deserialize_with = "null_default", skip_serializing_if = "is_zero")]
    pub retries: i64,
    /// Fields this crate does not know.
    #[serde(flatten)]
    pub extra: BTreeMap<String, Value>,
}

/// The layers of an image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RootFs {
    /// Always `layers`.
    #[serde(rename = "type", default, deserialize_with = "null_default")]
    pub kind: String,
    /// Bottom first. An empty list is written as `null`, as Go writes a nil slice.
    #[serde(default, deserialize_with = "null_default", serialize_with = "write_nil_slice")]
    pub diff_ids: Vec<DiffId>,
    /// Fields this crate does not know.
    #[serde(flatten)]
    pub extra: BTreeMap<String, Value>,
}

/// One step of an image's making.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct History {
    /// When.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub created: Option<Timestamp>,
    /// By which command.
    #[serde(default, deserialize_with = "null_default", skip_serializing_if = "String::is_empty")]
    pub created_by: String,
    /// By whom.
    #[serde(default, deserialize_with = "null_default", skip_serializing_if = "String::is_empty")]
    pub author: String,
    /// A message.
    #[serde(default, deserialize_with = "null_default", skip_serializing_if = "String::is_empty")]
    pub comment: String,
    /// Whether the step made no layer.
    #[serde(default, deserialize_with = "null_default", skip_serializing_if = "is_false")]
    pub empty_layer: bool,
    /// Fields this crate does not know.
    #[serde(flatten)]
    pub extra: BTreeMap<String, Value>,
}

impl Default for RootFs {
    fn default() -> Self {
        RootFs { kind: "layers".to_owned(), diff_ids: Vec::new(), extra: BTreeMap::new() }
    }
}

impl ImageConfig {
    /// An image of nothing for a platform.
    pub fn for_platform(p: &Platform) -> ImageConfig {
        let mut config = ImageConfig::default();
        config.set_platform(p);
        config
    }

    /// Reads a config document.
    pub fn from_json(bytes: &[u8]) -> Result<ImageConfig, OciError> {
        serde_json::from_slice(bytes).map_err(|e| OciError::json("image config", &e))
    }

    /// The document as stored and hashed: top-level keys sorted (BuildKit and Moby both pass it through a map at
    /// the end), the rest in struct order.
    pub fn to_json(&self) -> Result<Vec<u8>, OciError> {
        let value = serde_json::to_value(self).map_err(|e| OciError::json("image config", &e))?;
        let Value::Object(map) = value else { unreachable!("a struct serialises as an object") };
        gojson::to_vec(&map.into_iter().collect::<BTreeMap<String, Value>>())
    }

    /// The document in struct order, as a BuildKit frontend hands it on (`containerimage.config`).
    pub fn to_frontend_json(&self) -> Result<Vec<u8>, OciError> {
        gojson::to_vec(self)
    }

    /// What the image runs on.
    pub fn platform(&self) -> Platform {
        Platform {
            architecture: self.architecture.clone(),
            os: self.os.clone(),
            os_version: self.os_version.clone(),
            os_features: self.os_features.clone(),
            variant: self.variant.clone(),
        }
    }

    /// Sets what the image runs on.
    pub fn set_platform(&mut self, p: &Platform) {
        let p = p.clone();
        self.architecture = p.architecture;
        self.os = p.os;
        self.os_version = p.os_version;
        self.os_features = p.os_features;
        self.variant = p.variant;
    }

    /// Drops what BuildKit's frontend drops when it builds from an image: the fields that only Moby's classic
    /// builder writes, and all unknown ones. Two builders then make the same document of the same Dockerfile.
    pub fn retain_buildkit_fields(&mut self) {
        self.parent.clear();
        self.comment.clear();
        self.container.clear();
        self.container_config = None;
        self.docker_version.clear();
        self.extra.clear();
        self.rootfs.extra.clear();
        let c = &mut self.config;
        (c.stop_timeout, c.hostname, c.domainname, c.mac_address, c.image) = (None, None, None, None, None);
        c.extra.clear();
        if let Some(h) = &mut c.healthcheck {
            h.extra.clear();
        }
        for h in &mut self.history {
            h.extra.clear();
        }
    }
}

fn is_false(b: &bool) -> bool {
    !*b
}

fn is_zero(n: &i64) -> bool {
    *n == 0
}

fn none_or_empty(v: &Option<Vec<String>>) -> bool {
    v.as_ref().is_none_or(Vec::is_empty)
}

/// Reads Go's `map[string]struct{}`.
fn key_set<'de, D: Deserializer<'de>>(d: D) -> Result<BTreeSet<String>, D::Error> {
    let map = Option::<BTreeMap<String, serde::de::IgnoredAny>>::deserialize(d)?;
    Ok(map.unwrap_or_default().into_keys().collect())
}

fn write_key_set<S: Serializer>(set: &BTreeSet<String>, s: S) -> Result<S::Ok, S::Error> {
    let mut map = s.serialize_map(Some(set.len()))?;
    for key in set {
        map.serialize_entry(key, &serde_json::Map::new())?;
    }
    map.end()
}

fn write_nil_slice<S: Serializer>(v: &[DiffId], s: S) -> Result<S::Ok, S::Error> {
    if v.is_empty() { s.serialize_none() } else { v.serialize(s) }
}
