//! The daemon itself: `/_ping`, `/version`, `/info`, `/events`, `/auth`, `/system/df`.

use std::sync::Arc;

use http::{HeaderValue, StatusCode, header};
use lapstrake_api_types::{
    ApiTypeError, ApiVersion, AuthConfig, AuthResponse, BuildCacheUsage, ComponentVersion, DiskUsage,
    DiskUsageObject, DiskUsageQuery, EventFilter, EventMessage, Filters, ImageUsage, Info, PlatformName,
    SystemVersion, Timestamp, parse_unix_time,
};
use tokio::sync::broadcast::error::RecvError;

use crate::{
    ApiError, AppState,
    blocking::blocking,
    body::{self, Answer, Body, StreamWriter},
    images,
    request::DoorRequest,
};

mod machine;

pub(crate) fn ping(request: &DoorRequest) -> Answer {
    let head = request.method == http::Method::HEAD;
    let body = if head { Body::empty() } else { Body::full("OK") };
    let mut answer = body::answer(StatusCode::OK, "text/plain; charset=utf-8", body);
    let headers = answer.headers_mut();
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache, no-store, must-revalidate"));
    headers.insert(header::PRAGMA, HeaderValue::from_static("no-cache"));
    headers.insert("Builder-Version", HeaderValue::from_static("2"));
    headers.insert("Swarm", HeaderValue::from_static("inactive"));
    if head {
        headers.insert(header::CONTENT_LENGTH, HeaderValue::from_static("0"));
    }
    answer
}

pub(crate) fn version(state: &AppState) -> Answer {
    let facts = &state.facts;
    let kernel = machine::kernel_version();
    let details = [
        ("ApiVersion", ApiVersion::MAX.to_string()),
        ("MinAPIVersion", ApiVersion::MIN.to_string()),
        ("Os", "linux".to_owned()),
        ("Arch", machine::go_arch().to_owned()),
        ("KernelVersion", kernel.clone()),
        ("GitCommit", facts.git_commit.clone()),
        ("BuildTime", facts.build_time.clone()),
        ("Experimental", "false".to_owned()),
    ];
    body::ok(&SystemVersion {
        platform: PlatformName { name: "Lapstrake".to_owned() },
        version: facts.version.clone(),
        api_version: ApiVersion::MAX.to_string(),
        min_api_version: ApiVersion::MIN.to_string(),
        os: "linux".to_owned(),
        arch: machine::go_arch().to_owned(),
        components: vec![ComponentVersion {
            name: "Engine".to_owned(),
            version: facts.version.clone(),
            details: details.map(|(name, value)| (name.to_owned(), value)).into(),
        }],
        git_commit: facts.git_commit.clone(),
        go_version: String::new(),
        kernel_version: kernel,
        build_time: facts.build_time.clone(),
    })
}

pub(crate) async fn info(state: Arc<AppState>, request: DoorRequest) -> Result<Answer, ApiError> {
    let api = request.api;
    let info = blocking(move || {
        let facts = &state.facts;
        let mut info = Info {
            id: facts.id.clone(),
            images: state.stores.images.list()?.len(),
            driver: facts.driver.clone(),
            driver_status: facts.driver_status.clone(),
            debug: facts.debug,
            system_time: Timestamp::now().rfc3339(),
            cgroup_driver: facts.cgroup_driver.clone(),
            event_listeners: state.events.followers(),
            root_dir: facts.root.display().to_string(),
            proxies: facts.proxies.clone(),
            server_version: facts.version.clone(),
            insecure_registries: facts.insecure_registries.clone(),
            mirrors: facts.mirrors.clone(),
            runtimes: facts.runtimes.iter().cloned().collect(),
            default_runtime: facts.default_runtime.clone(),
            security_options: facts.security_options.clone(),
            warnings: facts.warnings.clone(),
            ..Info::default()
        };
        machine::describe(&mut info);
        Ok::<_, ApiError>(info)
    })
    .await?;
    Ok(body::ok(&info.to_json(api)))
}

pub(crate) async fn auth(state: Arc<AppState>, request: DoorRequest) -> Result<Answer, ApiError> {
    let document = request.small_body(state.limits.document_bytes).await?;
    let auth = AuthConfig::from_json(&document)?;
    let token = state.transfer.authenticate(auth).await?;
    Ok(body::ok(&AuthResponse {
        status: "Login Succeeded".to_owned(),
        identity_token: token.unwrap_or_default(),
    }))
}

pub(crate) async fn disk_usage(state: Arc<AppState>, request: DoorRequest) -> Result<Answer, ApiError> {
    let query = DiskUsageQuery::parse(&request.form, request.api)?;
    let (api, verbose) = (request.api, query.verbose);
    let usage = blocking(move || {
        let mut usage = DiskUsage {
            containers: query.wants(DiskUsageObject::Container),
            volumes: query.wants(DiskUsageObject::Volume),
            ..DiskUsage::default()
        };
        if query.wants(DiskUsageObject::Image) {
            let images = images::summaries(&state.stores, &Filters::default(), false, true)?;
            let on_disk = lapstrake_layerstore_store::disk_usage_of_images(&state.stores)?;
            let total = i64::try_from(on_disk.of_images()).unwrap_or(i64::MAX);
            usage.images = Some(ImageUsage { total, images });
        }
        if query.wants(DiskUsageObject::BuildCache) {
            usage.build_cache = Some(BuildCacheUsage { records: state.cache.records()? });
        }
        Ok::<_, ApiError>(usage)
    })
    .await?;
    Ok(body::ok(&usage.to_json(api, verbose)))
}

/// The media types that a stream of events may have.
const EVENT_TYPES: [&str; 3] = ["application/jsonl", "application/x-ndjson", "application/json-seq"];

pub(crate) fn events(state: &AppState, request: &DoorRequest) -> Result<Answer, ApiError> {
    let time = |name: &str| {
        parse_unix_time(request.form.get(name))
            .map_err(|error| ApiError::invalid(format!("invalid value for '{name}': {error}")))
    };
    let (since, until) = (time("since")?, time("until")?);
    if let (Some(from), Some(to)) = (since, until)
        && to < from
    {
        return Err(ApiError::invalid(format!(
            "`since` time ({}) cannot be after `until` time ({})",
            request.form.get("since"),
            request.form.get("until")
        )));
    }
    let filter =
        EventFilter::parse(request.form.get("filters")).map_err(|_| ApiError::from(ApiTypeError::Filters))?;
    let accepted = request.header("accept");
    let fallback = if request.api.at_least(52) { EVENT_TYPES[0] } else { "application/json" };
    let asked = accepted.split(',').map(|one| one.split(';').next().unwrap_or_default().trim());
    let content_type = asked
        .filter_map(|one| EVENT_TYPES.iter().copied().find(|known| *known == one))
        .next()
        .unwrap_or(fallback);

    let (past, mut present) = state.events.follow(since, until);
    let (writer, body) = body::stream(None);
    let reader =
        EventWriter { writer, filter, api: request.api, is_sequence: content_type == EVENT_TYPES[2] };
    tokio::spawn(async move {
        for event in &past {
            if reader.write(event).await.is_err() {
                return;
            }
        }
        let now = Timestamp::now();
        let end = match until {
            Some(until) if until <= now => return,
            Some(until) => Some(until.0 - now.0),
            None => None,
        };
        let timeout = async {
            match end {
                Some(time) => tokio::time::sleep(time.unsigned_abs()).await,
                None => std::future::pending().await,
            }
        };
        tokio::pin!(timeout);
        loop {
            let event = tokio::select! {
                () = &mut timeout => return,
                () = reader.writer.closed() => return,
                event = present.recv() => event,
            };
            match event {
                Ok(event) if reader.write(&event).await.is_err() => return,
                Ok(_) => {}
                // The client read so slowly that it missed some; so it would have in Moby.
                Err(RecvError::Lagged(missed)) => tracing::debug!(missed, "a client reads events too slowly"),
                Err(RecvError::Closed) => return,
            }
        }
    });
    Ok(body::answer(StatusCode::OK, content_type, body))
}

struct EventWriter {
    writer: StreamWriter,
    filter: EventFilter,
    api: ApiVersion,
    /// RFC 7464: each record begins with a record separator.
    is_sequence: bool,
}

impl EventWriter {
    async fn write(&self, event: &EventMessage) -> Result<(), body::Gone> {
        if !event.exists_in(self.api) || !self.filter.includes(event) {
            return Ok(());
        }
        let separator = if self.is_sequence { "\u{1e}" } else { "" };
        self.writer.send(format!("{separator}{}\n", event.to_json(self.api))).await
    }
}
