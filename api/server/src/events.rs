//! What happened lately, for `GET /events`.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::Arc,
};

use lapstrake_api_types::{Actor, EventAction, EventMessage, EventType, Timestamp};
use lapstrake_layerstore_oci::ImageId;
use lapstrake_layerstore_store::{ImageRecord, Stores};
use parking_lot::Mutex;
use serde::Deserialize;
use tokio::sync::broadcast;

/// Events that are kept for clients that ask for the past, as in Moby.
const KEPT: usize = 256;
/// Events that a client may be behind before it misses some.
const BEHIND: usize = 1024;

/// Tells events to whoever follows, and keeps the last 256. Cheap to clone; telling never waits.
#[derive(Clone)]
pub struct EventBus(Arc<Shared>);

struct Shared {
    past: Mutex<VecDeque<EventMessage>>,
    present: broadcast::Sender<EventMessage>,
}

impl Default for EventBus {
    fn default() -> Self {
        Self(Arc::new(Shared { past: Mutex::default(), present: broadcast::Sender::new(BEHIND) }))
    }
}

impl EventBus {
    /// Tells an event that happens now.
    pub fn tell(&self, kind: EventType, action: EventAction, actor: Actor) {
        // Under the lock, so that times never go backwards and a new follower misses nothing.
        let mut past = self.0.past.lock();
        let event = EventMessage { kind, action, actor, time: Timestamp::now() };
        if past.len() == KEPT {
            past.pop_front();
        }
        past.push_back(event.clone());
        // No followers: nobody to tell.
        let _ = self.0.present.send(event);
    }

    /// Tells an image's event, with its labels and `name`.
    pub fn tell_image(&self, stores: &Stores, action: EventAction, id: &ImageId, name: &str) {
        let config = stores.images.get(id).ok().flatten();
        self.tell_record(action, id, name, config.as_ref());
    }

    /// As [`Self::tell_image`] for an image whose record is at hand, or that is gone.
    pub fn tell_record(&self, action: EventAction, id: &ImageId, name: &str, record: Option<&ImageRecord>) {
        let mut attributes = record.map(|record| labels(&record.config)).unwrap_or_default();
        attributes.insert("name".to_owned(), name.to_owned());
        self.tell(EventType::Image, action, Actor { id: id.to_string(), attributes });
    }

    /// Tells a prune and how many bytes it freed.
    pub fn tell_prune(&self, kind: EventType, freed: u64) {
        let attributes = BTreeMap::from([("reclaimed".to_owned(), freed.to_string())]);
        self.tell(kind, EventAction::Prune, Actor { id: String::new(), attributes });
    }

    /// The past between two times (none without either), and everything from now on.
    pub(crate) fn follow(
        &self,
        since: Option<Timestamp>,
        until: Option<Timestamp>,
    ) -> (Vec<EventMessage>, broadcast::Receiver<EventMessage>) {
        let past = self.0.past.lock();
        let present = self.0.present.subscribe();
        if since.is_none() && until.is_none() {
            return (Vec::new(), present);
        }
        let within = |event: &&EventMessage| {
            since.is_none_or(|since| event.time >= since) && until.is_none_or(|until| event.time <= until)
        };
        (past.iter().filter(within).cloned().collect(), present)
    }

    /// Clients that follow now.
    pub fn followers(&self) -> usize {
        self.0.present.receiver_count()
    }
}

/// The labels of a config, without what an image has besides, which is much of it.
fn labels(config: &[u8]) -> BTreeMap<String, String> {
    #[derive(Deserialize)]
    struct Image {
        config: Option<Config>,
    }
    #[derive(Deserialize)]
    struct Config {
        #[serde(rename = "Labels")]
        labels: Option<BTreeMap<String, String>>,
    }
    let image: Option<Image> = serde_json::from_slice(config).ok();
    image.and_then(|image| image.config?.labels).unwrap_or_default()
}

impl std::fmt::Debug for EventBus {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("EventBus").field("followers", &self.followers()).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tell(bus: &EventBus, id: usize) {
        let actor = Actor { id: id.to_string(), attributes: BTreeMap::new() };
        bus.tell(EventType::Image, EventAction::Tag, actor);
    }

    #[test]
    fn the_last_256_are_kept_for_those_who_ask_for_the_past() {
        let bus = EventBus::default();
        for id in 0..300 {
            tell(&bus, id);
        }
        assert!(bus.follow(None, None).0.is_empty());
        let (past, _) = bus.follow(Some(Timestamp::from(std::time::UNIX_EPOCH)), None);
        assert_eq!(past.len(), 256);
        assert_eq!((past[0].actor.id.as_str(), past[255].actor.id.as_str()), ("44", "299"));
        let (past, _) = bus.follow(None, Some(Timestamp::from(std::time::UNIX_EPOCH)));
        assert!(past.is_empty());
    }

    #[test]
    fn labels_are_found_in_any_config() {
        assert!(labels(b"no json").is_empty());
        for none in [r#"{}"#, r#"{"config":null}"#, r#"{"config":{"Labels":null}}"#] {
            assert!(labels(none.as_bytes()).is_empty(), "{none}");
        }
        let some = labels(br#"{"os":"linux","config":{"Env":[],"Labels":{"a":"b"}},"history":[{}]}"#);
        assert_eq!(some, BTreeMap::from([("a".to_owned(), "b".to_owned())]));
    }

    #[tokio::test]
    async fn followers_get_what_comes() {
        let bus = EventBus::default();
        tell(&bus, 1);
        let (_, mut present) = bus.follow(None, None);
        tell(&bus, 2);
        assert_eq!(present.recv().await.unwrap().actor.id, "2");
        assert_eq!(bus.followers(), 1);
    }
}
