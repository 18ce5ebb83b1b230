//! Images in lists, history, deletion and pruning.

use std::collections::BTreeMap;

use lapstrake_layerstore_oci::{Descriptor, Platform, Reference};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::{ApiTypeError, ApiVersion};

/// One image of `GET /images/json`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct ImageSummary {
    /// Containers made from it, or -1 for "not counted".
    pub containers: i64,
    /// When it was made, in Unix seconds.
    pub created: i64,
    /// Its id.
    pub id: String,
    /// Its labels; `null` when the config has none.
    pub labels: Option<BTreeMap<String, String>>,
    /// The image it was made from, or empty.
    pub parent_id: String,
    /// What its name points to, where the store keeps manifests.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub descriptor: Option<Descriptor>,
    /// `name@digest` names.
    pub repo_digests: Vec<String>,
    /// `name:tag` names.
    pub repo_tags: Vec<String>,
    /// Bytes in layers that other images have too, or -1 for "not counted".
    pub shared_size: i64,
    /// Bytes in all its layers.
    pub size: i64,
}

impl ImageSummary {
    /// The layout of `GET /images/json`.
    pub fn to_json(&self, api: ApiVersion) -> Value {
        let mut summary = self.clone();
        if !api.at_least(43) && summary.repo_tags.is_empty() && summary.repo_digests.is_empty() {
            summary.repo_tags.push("<none>:<none>".to_owned());
            summary.repo_digests.push("<none>@<none>".to_owned());
        }
        if !api.at_least(48) {
            summary.descriptor = None;
        }
        if !api.at_least(51) {
            summary.containers = -1;
        }
        summary.with_virtual_size(api)
    }

    /// The layout within `GET /system/df`, which differs in nothing but `VirtualSize`.
    pub(crate) fn with_virtual_size(&self, api: ApiVersion) -> Value {
        let mut value = json!(self);
        if !api.at_least(44) {
            value["VirtualSize"] = json!(self.size);
        }
        value
    }
}

/// The answer to `GET /images/json`.
pub fn images_to_json(images: &[ImageSummary], api: ApiVersion) -> Value {
    images.iter().map(|image| image.to_json(api)).collect()
}

/// One step of `GET /images/{name}/history`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct HistoryItem {
    /// A message.
    pub comment: String,
    /// When, in Unix seconds; 0 when not known.
    pub created: i64,
    /// By which command.
    pub created_by: String,
    /// The image that the step made, or `<missing>`.
    pub id: String,
    /// Bytes in the step's layer.
    pub size: i64,
    /// Names of the image that the step made; `null` for none, as Moby's.
    pub tags: Option<Vec<String>>,
}

/// One thing that `DELETE /images/{name}` or a prune did.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub enum DeleteItem {
    /// A name went.
    Untagged(String),
    /// An image or a layer went.
    Deleted(String),
}

/// The answer to `POST /images/prune`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct ImagePruneReport {
    /// What went; `null` for nothing, as Moby's.
    pub images_deleted: Option<Vec<DeleteItem>>,
    /// Bytes freed on disk.
    pub space_reclaimed: u64,
}

#[derive(Deserialize)]
struct PlatformDocument {
    #[serde(default)]
    architecture: String,
    #[serde(default)]
    os: String,
    #[serde(default, rename = "os.version")]
    os_version: String,
    #[serde(default, rename = "os.features")]
    os_features: Vec<String>,
    #[serde(default)]
    variant: String,
}

/// A platform as newer endpoints take it: OCI's JSON.
pub fn decode_platform(text: &str) -> Result<Platform, ApiTypeError> {
    let document: PlatformDocument = serde_json::from_str(text).map_err(|error| ApiTypeError::Json {
        what: "failed to parse platform",
        reason: error.to_string(),
    })?;
    let optional =
        !document.variant.is_empty() || !document.os_version.is_empty() || !document.os_features.is_empty();
    match (document.os.is_empty(), document.architecture.is_empty()) {
        (true, true) if optional => Err(ApiTypeError::Invalid(
            "optional platform fields provided, but OS and Architecture are missing",
        )),
        (false, false) => Ok(Platform {
            architecture: document.architecture,
            os: document.os,
            os_version: document.os_version,
            os_features: document.os_features,
            variant: document.variant,
        }),
        _ => Err(ApiTypeError::Invalid("both OS and Architecture must be provided")),
    }
}

/// Several such platforms, of which older versions take one.
pub fn decode_platforms<'a>(
    texts: impl Iterator<Item = &'a str>,
    api: ApiVersion,
) -> Result<Vec<Platform>, ApiTypeError> {
    if !api.at_least(48) {
        return Ok(Vec::new());
    }
    let platforms = texts.map(decode_platform).collect::<Result<Vec<_>, _>>()?;
    if platforms.len() > 1 && !api.at_least(52) {
        return Err(ApiTypeError::Invalid(
            "multiple platform parameters are not supported in this API version; use API version 1.52 or later",
        ));
    }
    Ok(platforms)
}

/// The name that parameters `repo` and `tag` make; `None` without `repo`.
pub fn repo_tag_reference(repo: &str, tag: &str) -> Result<Option<Reference>, ApiTypeError> {
    if repo.is_empty() {
        return Ok(None);
    }
    let reference = Reference::parse(repo)?;
    if reference.digest().is_some() {
        return Err(ApiTypeError::Invalid("cannot import digest reference"));
    }
    if tag.is_empty() {
        return Ok(Some(reference.with_default_tag()));
    }
    Ok(Some(reference.with_tag(tag)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn summary() -> ImageSummary {
        ImageSummary {
            containers: 0,
            created: 1,
            id: "sha256:a".to_owned(),
            labels: None,
            parent_id: String::new(),
            descriptor: None,
            repo_digests: vec![],
            repo_tags: vec![],
            shared_size: -1,
            size: 5,
        }
    }

    #[test]
    fn an_image_without_names_looks_as_each_version_wants_it() {
        insta::assert_snapshot!(summary().to_json(ApiVersion::v1(24)), @r#"{"Containers":-1,"Created":1,"Id":"sha256:a","Labels":null,"ParentId":"","RepoDigests":["<none>@<none>"],"RepoTags":["<none>:<none>"],"SharedSize":-1,"Size":5,"VirtualSize":5}"#);
        insta::assert_snapshot!(summary().to_json(ApiVersion::v1(43)), @r#"{"Containers":-1,"Created":1,"Id":"sha256:a","Labels":null,"ParentId":"","RepoDigests":[],"RepoTags":[],"SharedSize":-1,"Size":5,"VirtualSize":5}"#);
        insta::assert_snapshot!(summary().to_json(ApiVersion::v1(44)), @r#"{"Containers":-1,"Created":1,"Id":"sha256:a","Labels":null,"ParentId":"","RepoDigests":[],"RepoTags":[],"SharedSize":-1,"Size":5}"#);
        insta::assert_snapshot!(summary().to_json(ApiVersion::v1(51)), @r#"{"Containers":0,"Created":1,"Id":"sha256:a","Labels":null,"ParentId":"","RepoDigests":[],"RepoTags":[],"SharedSize":-1,"Size":5}"#);
    }

    #[test]
    fn deletions_are_one_field_each() {
        let items = [DeleteItem::Untagged("a:1".to_owned()), DeleteItem::Deleted("sha256:b".to_owned())];
        assert_eq!(json!(items).to_string(), r#"[{"Untagged":"a:1"},{"Deleted":"sha256:b"}]"#);
    }

    #[test]
    fn platforms_need_both_halves() {
        assert_eq!(
            decode_platform(r#"{"os":"linux","architecture":"arm64"}"#).unwrap().architecture,
            "arm64"
        );
        assert_eq!(
            decode_platform(r#"{"variant":"v7"}"#).unwrap_err().to_string(),
            "optional platform fields provided, but OS and Architecture are missing"
        );
        assert_eq!(
            decode_platform(r#"{"os":"linux"}"#).unwrap_err().to_string(),
            "both OS and Architecture must be provided"
        );
        let two = [r#"{"os":"linux","architecture":"arm64"}"#; 2];
        assert!(decode_platforms(two.into_iter(), ApiVersion::v1(51)).is_err());
        assert_eq!(decode_platforms(two.into_iter(), ApiVersion::v1(52)).unwrap().len(), 2);
        assert!(decode_platforms(["x"].into_iter(), ApiVersion::v1(47)).unwrap().is_empty());
    }

    #[test]
    fn repo_and_tag_make_a_name() {
        assert_eq!(repo_tag_reference("", "x").unwrap(), None);
        assert_eq!(repo_tag_reference("a", "").unwrap().unwrap().familiar(), "a:latest");
        assert_eq!(repo_tag_reference("a:1", "2").unwrap().unwrap().familiar(), "a:2");
        assert!(repo_tag_reference("a", "/").is_err());
    }
}
