//! `GET /events`.

use std::collections::BTreeMap;

use lapstrake_layerstore_oci::Reference;
use serde::Serialize;
use serde_json::{Value, json};

use crate::{ApiTypeError, ApiVersion, Filters, Timestamp};

/// What kind of thing an event is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum EventType {
    /// The build cache.
    Builder,
    /// The daemon.
    Daemon,
    /// An image.
    Image,
}

impl EventType {
    /// Its name.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Builder => "builder",
            Self::Daemon => "daemon",
            Self::Image => "image",
        }
    }
}

/// What happened to it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum EventAction {
    /// An image was built.
    Create,
    /// An image and its last name went.
    Delete,
    /// An image was made from a tree's archive.
    Import,
    /// An image came from an archive.
    Load,
    /// Unused things were removed.
    Prune,
    /// An image came from a registry.
    Pull,
    /// An image went to a registry.
    Push,
    /// An image was written to an archive.
    Save,
    /// A name was put on an image.
    Tag,
    /// A name went.
    Untag,
}

impl EventAction {
    /// Its name.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Create => "create",
            Self::Delete => "delete",
            Self::Import => "import",
            Self::Load => "load",
            Self::Prune => "prune",
            Self::Pull => "pull",
            Self::Push => "push",
            Self::Save => "save",
            Self::Tag => "tag",
            Self::Untag => "untag",
        }
    }
}

/// The thing.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Actor {
    /// Its id.
    #[serde(rename = "ID")]
    pub id: String,
    /// Its name, labels and so on.
    #[serde(rename = "Attributes")]
    pub attributes: BTreeMap<String, String>,
}

/// One event.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EventMessage {
    /// What kind of thing.
    pub kind: EventType,
    /// What happened.
    pub action: EventAction,
    /// Which thing.
    pub actor: Actor,
    /// When.
    pub time: Timestamp,
}

impl EventMessage {
    /// Whether clients of this version know the event.
    pub fn exists_in(&self, api: ApiVersion) -> bool {
        api.at_least(46) || !(self.kind == EventType::Image && self.action == EventAction::Create)
    }

    /// The layout of a version: up to 1.51 images have the fields of API 1.21 too, without which older CLIs panic.
    pub fn to_json(&self, api: ApiVersion) -> Value {
        let mut value = json!({});
        if !api.at_least(52) && self.kind == EventType::Image {
            value["status"] = json!(self.action);
            value["id"] = json!(self.actor.id);
        }
        value["Type"] = json!(self.kind);
        value["Action"] = json!(self.action);
        value["Actor"] = json!(self.actor);
        value["scope"] = json!("local");
        value["time"] = json!(self.time.unix());
        value["timeNano"] = json!(self.time.unix_nanos());
        value
    }
}

/// Which events a client wants.
#[derive(Debug, Clone, Default)]
pub struct EventFilter(Filters);

impl EventFilter {
    /// Reads the `filters` parameter. As in Moby, filters that no event has are no error.
    pub fn parse(text: &str) -> Result<EventFilter, ApiTypeError> {
        Filters::parse(text).map(EventFilter)
    }

    /// Whether the client wants this event.
    pub fn includes(&self, event: &EventMessage) -> bool {
        let filters = &self.0;
        let id = event.actor.id.as_str();
        let name = event.actor.attributes.get("name").map_or("", String::as_str);
        let named = |filter: &str| filters.match_prefix(filter, id) || filters.match_prefix(filter, name);
        let image = if event.kind == EventType::Image {
            name
        } else {
            event.actor.attributes.get("image").map_or("", String::as_str)
        };
        let is_image = |text: &str| filters.match_exact("image", text);
        filters.match_exact("event", event.action.as_str())
            && filters.match_exact("type", event.kind.as_str())
            && filters.match_exact("scope", "local")
            && ["daemon", "container", "plugin", "volume", "network", "node", "service", "secret", "config"]
                .into_iter()
                .all(named)
            && (is_image(id) || is_image(image) || is_image(&strip_tag(id)) || is_image(&strip_tag(image)))
            && filters.match_labels("label", &event.actor.attributes)
    }
}

fn strip_tag(image: &str) -> String {
    Reference::parse(image).map_or_else(|_| image.to_owned(), |reference| reference.familiar_name())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(name: &str) -> EventMessage {
        EventMessage {
            kind: EventType::Image,
            action: EventAction::Tag,
            actor: Actor {
                id: "sha256:a".to_owned(),
                attributes: BTreeMap::from([("name".to_owned(), name.to_owned())]),
            },
            time: crate::parse_unix_time("1700000000.5").unwrap().unwrap(),
        }
    }

    #[test]
    fn old_versions_have_the_oldest_fields_too() {
        insta::assert_snapshot!(event("a:1").to_json(ApiVersion::v1(51)), @r#"{"status":"tag","id":"sha256:a","Type":"image","Action":"tag","Actor":{"ID":"sha256:a","Attributes":{"name":"a:1"}},"scope":"local","time":1700000000,"timeNano":1700000000500000000}"#);
        insta::assert_snapshot!(event("a:1").to_json(ApiVersion::v1(52)), @r#"{"Type":"image","Action":"tag","Actor":{"ID":"sha256:a","Attributes":{"name":"a:1"}},"scope":"local","time":1700000000,"timeNano":1700000000500000000}"#);
        let create = EventMessage { action: EventAction::Create, ..event("a") };
        assert!(!create.exists_in(ApiVersion::v1(45)) && create.exists_in(ApiVersion::v1(46)));
    }

    #[test]
    fn filters_choose_events() {
        let wants = |filters: &str| EventFilter::parse(filters).unwrap().includes(&event("a:1"));
        for yes in [
            "",
            r#"{"type":["image"]}"#,
            r#"{"event":["tag","untag"]}"#,
            r#"{"image":["a"]}"#,
            r#"{"image":["a:1"]}"#,
            r#"{"image":["sha256:a"]}"#,
            r#"{"label":["name=a:1"]}"#,
        ] {
            assert!(wants(yes), "{yes}");
        }
        for no in [
            r#"{"type":["container"]}"#,
            r#"{"event":["pull"]}"#,
            r#"{"image":["b"]}"#,
            r#"{"scope":["swarm"]}"#,
            r#"{"container":["x"]}"#,
            r#"{"label":["z"]}"#,
        ] {
            assert!(!wants(no), "{no}");
        }
    }
}
