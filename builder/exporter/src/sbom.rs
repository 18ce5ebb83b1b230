//! Bills of materials say which layer each file is in, as BuildKit's image exporter adds it to SPDX documents (`exporter/containerimage/attestations.go`).

use std::collections::HashMap;

use bytes::Bytes;
use lapstrake_layerstore_oci::{Descriptor, Digest, gojson};
use lapstrake_layerstore_store::{Layer, Stores};
use lapstrake_layerstore_transfer::layer_names;
use serde_json::{Value, json};

use crate::ExportError;

/// Begins the name of a file that says that another one is gone (OCI image-spec, "Whiteouts").
const WHITEOUT: &str = ".wh.";

/// The layers of an image, bottom first, each with its blob.
pub(crate) struct ImageLayers<'a> {
    pub(crate) layers: &'a [Layer],
    pub(crate) blobs: &'a [Descriptor],
}

/// An SPDX document whose files say which layer they are in; `None` for a document that is none. Files that have a comment keep it. Blocks.
pub(crate) fn with_layers(
    stores: &Stores,
    image: &ImageLayers<'_>,
    document: &[u8],
) -> Result<Option<Bytes>, ExportError> {
    let Ok(mut document) = serde_json::from_slice::<Value>(document) else { return Ok(None) };
    let version = document.get("spdxVersion").and_then(Value::as_str).unwrap_or_default();
    if !version.starts_with("SPDX-") {
        return Ok(None);
    }
    let mut wanted = HashMap::new();
    each_file(&mut document, &mut |name, _| _ = wanted.insert(plain(name), None));
    find(stores, image, &mut wanted)?;
    each_file(&mut document, &mut |name, file| {
        if let Some(Some(blob)) = wanted.get(&plain(name)) {
            file.insert("comment".to_owned(), format!("layerID: {blob}").into());
        }
    });
    let info = &mut document["creationInfo"];
    if !info.is_object() {
        *info = json!({});
    }
    let creator = format!("Tool: lapstrake-{}", env!("CARGO_PKG_VERSION"));
    match &mut info["creators"] {
        Value::Array(creators) => creators.push(creator.into()),
        none => *none = json!([creator]),
    }
    Ok(Some(Bytes::from(gojson::to_vec(&document)?)))
}

/// Visits the files of a document that have a name and no comment.
fn each_file(document: &mut Value, visit: &mut dyn FnMut(&str, &mut serde_json::Map<String, Value>)) {
    let mut all = |owner: &mut Value| {
        for file in owner.get_mut("files").and_then(Value::as_array_mut).into_iter().flatten() {
            let Some(file) = file.as_object_mut() else { continue };
            let text = |key: &str| file.get(key).and_then(Value::as_str).unwrap_or_default().to_owned();
            let (name, comment) = (text("fileName"), text("comment"));
            if !name.is_empty() && comment.is_empty() {
                visit(&name, file);
            }
        }
    };
    all(document);
    document.get_mut("packages").and_then(Value::as_array_mut).into_iter().flatten().for_each(all);
}

/// A path below the root, in one form.
fn plain(path: &str) -> String {
    let mut parts = Vec::new();
    for part in path.split('/') {
        match part {
            "" | "." => {}
            ".." => _ = parts.pop(),
            part => parts.push(part),
        }
    }
    parts.join("/")
}

/// Finds the uppermost layer that makes each file, also of those that a layer above removes.
fn find(
    stores: &Stores,
    image: &ImageLayers<'_>,
    wanted: &mut HashMap<String, Option<Digest>>,
) -> Result<(), ExportError> {
    let mut left = wanted.len();
    for (layer, blob) in image.layers.iter().zip(image.blobs).rev() {
        if left == 0 {
            break;
        }
        layer_names(stores, layer, &mut |name| {
            let name = plain(name);
            let file = name.rsplit('/').next().unwrap_or_default();
            if file.starts_with(WHITEOUT) {
                return;
            }
            if let Some(found @ None) = wanted.get_mut(&name) {
                *found = Some(blob.digest.clone());
                left -= 1;
            }
        })?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_have_one_form() {
        for (path, form) in [("/a/b", "a/b"), ("./a//b/", "a/b"), ("/../a/./c/../b", "a/b"), ("/", "")] {
            assert_eq!(plain(path), form, "{path}");
        }
    }

    #[test]
    fn files_with_a_comment_are_left_alone() {
        let mut document = json!({
            "files": [{"fileName": "/a"}, {"fileName": "/b", "comment": "x"}, {"SPDXID": "c"}, null],
            "packages": [{"files": [{"fileName": "/d", "comment": ""}]}, {"name": "none"}],
        });
        let mut names = Vec::new();
        each_file(&mut document, &mut |name, _| names.push(name.to_owned()));
        assert_eq!(names, ["/a", "/d"]);
    }
}
