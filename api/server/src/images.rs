//! Images of the store: list, inspect, history, tag, delete, prune.

use std::{collections::HashMap, sync::Arc};

use http::StatusCode;
use lapstrake_api_types::{
    EventAction, EventType, Filters, ImagePruneReport, decode_platform, images_to_json, repo_tag_reference,
};
use lapstrake_layerstore_oci::{ChainId, DiffId, ImageConfig, Reference};
use lapstrake_layerstore_store::{ImageName, ImageRecord, LayerStore, StoreError, Stores};

use crate::{
    ApiError, AppState,
    blocking::blocking,
    body::{self, Answer},
    request::DoorRequest,
};

mod delete;
mod glob;
mod history;
mod inspect;
mod list;
mod prune;

pub(crate) use list::summaries;

pub(crate) async fn list(state: Arc<AppState>, request: DoorRequest) -> Result<Answer, ApiError> {
    let (api, form) = (request.api, &request.form);
    let mut filters = Filters::parse(form.get("filters"))?;
    // Old clients send one glob in a parameter of its own.
    if !api.at_least(25) && !filters.contains("reference") && !form.get("filter").is_empty() {
        filters.add("reference", form.get("filter"));
    }
    if api.at_least(54) && form.flag("identity") && !form.flag("manifests") {
        return Err(ApiError::invalid("conflicting options: identity requires manifests=1"));
    }
    let (all, shared) = (form.flag("all"), api.at_least(42) && form.flag("shared-size"));
    let images = blocking(move || summaries(&state.stores, &filters, all, shared)).await?;
    Ok(body::ok(&images_to_json(&images, api)))
}

pub(crate) async fn inspect(
    state: Arc<AppState>,
    request: DoorRequest,
    name: String,
) -> Result<Answer, ApiError> {
    let (api, form) = (request.api, &request.form);
    let platform = match form.get("platform") {
        text if !text.is_empty() && api.at_least(49) => Some(decode_platform(text)?),
        _ => None,
    };
    if platform.is_some() && api.at_least(48) && form.flag("manifests") {
        return Err(ApiError::invalid(
            "conflicting options: manifests and platform options cannot both be set",
        ));
    }
    let image = blocking(move || {
        let record = find(&state.stores, &name)?;
        if let Some(platform) = platform {
            check_platform(&record, &name, &platform)?;
        }
        inspect::inspect(&state.stores, &state.facts.driver, &record)
    })
    .await?;
    Ok(body::ok(&image.to_json(api)))
}

pub(crate) async fn history(
    state: Arc<AppState>,
    request: DoorRequest,
    name: String,
) -> Result<Answer, ApiError> {
    let platform = match request.form.get("platform") {
        text if !text.is_empty() && request.api.at_least(48) => Some(decode_platform(text)?),
        _ => None,
    };
    let items = blocking(move || {
        let record = find(&state.stores, &name)?;
        if let Some(platform) = platform {
            check_platform(&record, &name, &platform)?;
        }
        history::history(&state.stores, record)
    })
    .await?;
    Ok(body::ok(&items))
}

pub(crate) async fn tag(
    state: Arc<AppState>,
    request: DoorRequest,
    name: String,
) -> Result<Answer, ApiError> {
    let reference = repo_tag_reference(request.form.get("repo"), request.form.get("tag"))?
        .ok_or_else(|| ApiError::invalid("a new name is needed: parameter repo is empty"))?;
    if reference.familiar_name() == "sha256" {
        return Err(ApiError::invalid("refusing to create an ambiguous tag using digest algorithm as name"));
    }
    blocking(move || {
        let record = find(&state.stores, &name)?;
        // What is known of several platforms' images goes with the name.
        let target = record.index_meant(&name).cloned();
        let nameless = record.names.iter().find(|name| name.is_nameless() && name.target == target);
        state.stores.images.tag(&record.id, &ImageName { reference: reference.clone(), target })?;
        if let Some(nameless) = nameless {
            // Now it has one. Until here, and after a crash here, it has both.
            state.stores.images.untag(&nameless.reference)?;
        }
        state.events.tell_record(EventAction::Tag, &record.id, &reference.familiar(), Some(&record));
        Ok::<_, ApiError>(())
    })
    .await?;
    Ok(body::status(StatusCode::CREATED))
}

pub(crate) async fn delete(
    state: Arc<AppState>,
    request: DoorRequest,
    name: String,
) -> Result<Answer, ApiError> {
    if name.trim().is_empty() {
        return Err(ApiError::invalid("image name cannot be blank"));
    }
    let form = &request.form;
    let platforms: Vec<_> = if request.api.at_least(50) {
        form.all("platforms").map(decode_platform).collect::<Result<_, _>>()?
    } else {
        Vec::new()
    };
    if platforms.len() > 1 {
        return Err(ApiError::invalid("multiple platforms are not supported"));
    }
    let how = delete::How { force: form.flag("force"), prune: !form.flag("noprune") };
    let done = blocking(move || {
        let record = find(&state.stores, &name)?;
        if let Some(platform) = platforms.first() {
            check_platform(&record, &name, platform)?;
        }
        delete::Deletion::new(&state).run(&record, &name, how)
    })
    .await?;
    Ok(body::ok(&done.items))
}

pub(crate) async fn prune(state: Arc<AppState>, request: DoorRequest) -> Result<Answer, ApiError> {
    let filters = Filters::parse(request.form.get("filters"))?;
    let report = blocking(move || {
        let _running = state
            .pruning
            .try_lock()
            .map_err(|_| ApiError::conflict("a prune operation is already running"))?;
        let report: ImagePruneReport = prune::prune(&state, &filters)?;
        state.events.tell_prune(EventType::Image, report.space_reclaimed);
        Ok::<_, ApiError>(report)
    })
    .await?;
    Ok(body::ok(&report))
}

/// The image that a client means, or Moby's words for "there is none".
pub(crate) fn find(stores: &Stores, name: &str) -> Result<ImageRecord, ApiError> {
    stores.images.find(name).map_err(|error| match error {
        StoreError::NotFound { .. } => ApiError::not_found(format!("No such image: {}", in_full(name))),
        StoreError::Malformed { source, .. } => ApiError::invalid(source.to_string()),
        StoreError::Ambiguous { .. } => ApiError::new(
            crate::ApiErrorKind::NotFound,
            format!("No such image: {name}: id prefix is ambiguous"),
        ),
        other => other.into(),
    })
}

/// A name as messages show it: familiar, with its tag.
fn in_full(name: &str) -> String {
    match Reference::parse(name) {
        Ok(reference) => reference.with_default_tag().familiar(),
        Err(_) => name.to_owned(),
    }
}

/// Whether an image, which is for one platform, is for the one wanted; else 404 in Moby's words.
pub fn check_platform(
    record: &ImageRecord,
    name: &str,
    wanted: &lapstrake_layerstore_oci::Platform,
) -> Result<(), ApiError> {
    let found = config(record)?.platform();
    if lapstrake_layerstore_oci::PlatformMatcher::only(wanted).matches(&found) {
        return Ok(());
    }
    Err(ApiError::not_found(format!(
        "image with reference {name} was found but does not provide the specified platform ({wanted})"
    )))
}

fn config(record: &ImageRecord) -> Result<ImageConfig, ApiError> {
    ImageConfig::from_json(&record.config).map_err(|error| ApiError::internal(&error))
}

/// Familiar names with a tag, and those with a digest, each in order.
fn names(record: &ImageRecord) -> (Vec<String>, Vec<String>) {
    let shown = record.names.iter().filter(|name| !name.is_nameless()).map(|name| &name.reference);
    let (digests, tags): (Vec<_>, Vec<_>) = shown.partition(|reference| reference.digest().is_some());
    let familiar = |references: Vec<&Reference>| references.into_iter().map(Reference::familiar).collect();
    (familiar(tags), familiar(digests))
}

/// Sizes of layers, each asked for once.
struct LayerSizes<'a> {
    layers: &'a dyn LayerStore,
    known: HashMap<ChainId, u64>,
}

impl<'a> LayerSizes<'a> {
    fn new(stores: &'a Stores) -> Self {
        Self { layers: &*stores.layers, known: HashMap::new() }
    }

    /// The layers of an image, bottom first, with their sizes.
    fn of(&mut self, diff_ids: &[DiffId]) -> Result<Vec<(ChainId, u64)>, StoreError> {
        ChainId::all_of(diff_ids)
            .into_iter()
            .map(|chain| {
                let size = match self.known.get(&chain) {
                    Some(size) => *size,
                    None => {
                        let size = self.layers.by_chain(&chain)?.map_or(0, |layer| layer.size);
                        self.known.insert(chain.clone(), size);
                        size
                    }
                };
                Ok((chain, size))
            })
            .collect()
    }
}

fn signed(bytes: u64) -> i64 {
    i64::try_from(bytes).unwrap_or(i64::MAX)
}
