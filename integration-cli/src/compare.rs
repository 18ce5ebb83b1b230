//! Two engines' images of the same Dockerfile, made comparable.

use serde_json::{Map, Value, json};

use crate::{Docker, Output, SavedImage};

impl SavedImage {
    /// All that the image's document says, but for times; layers, whose digests are over times too, are counted, and the history is compared by
    /// itself.
    ///
    /// # Panics
    /// When the document is none.
    pub fn comparable(&self) -> Map<String, Value> {
        let mut document = self.config.as_object().expect("an object").clone();
        document.remove("created").expect("it says when it was made");
        document.remove("history").expect("it has a history");
        let layers = document["rootfs"]["diff_ids"].as_array().map_or(0, Vec::len);
        document.insert("rootfs".into(), json!({ "type": document["rootfs"]["type"], "layers": layers }));
        document["config"].as_object_mut().expect("an object").retain(|_, value| !is_empty(value));
        document.retain(|_, value| !is_empty(value));
        document
    }

    /// The history without times: what made the entry, with what, and whether it has no layer.
    ///
    /// # Panics
    /// When there is none.
    pub fn history(&self) -> Vec<String> {
        let entries = self.config["history"].as_array().expect("a history");
        let line = |entry: &Value| {
            let text = |name: &str| entry[name].as_str().unwrap_or_default().to_owned();
            let empty = entry["empty_layer"].as_bool().unwrap_or(false);
            format!("{}|{}|{empty}", text("created_by"), text("comment"))
        };
        entries.iter().map(line).collect()
    }

    /// Forgets what Debian's dockerd cannot have: its graph driver makes layers without the attributes of users (`pkg/archive`,
    /// "security.capability" alone).
    pub fn without_user_attributes(mut self) -> Self {
        for node in self.tree.values_mut() {
            node.xattrs.retain(|name, _| !name.starts_with("user."));
        }
        self
    }
}

/// Go's empty values, which may be there or not.
fn is_empty(value: &Value) -> bool {
    match value {
        Value::Null | Value::Bool(false) => true,
        Value::String(text) => text.is_empty(),
        Value::Array(items) => items.is_empty(),
        Value::Object(fields) => fields.is_empty(),
        _ => false,
    }
}

/// An image moves from one engine to the other.
pub fn hand_over(from: &Docker, to: &Docker, image: &str) -> Output {
    let archive = from.run(["save", image]).success().bytes;
    to.run_with(["load"], &archive).success()
}
