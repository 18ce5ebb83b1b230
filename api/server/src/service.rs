//! One request: version, door, common headers.

use std::{convert::Infallible, sync::Arc};

use http::{HeaderValue, Method, Request, Version, header};
use hyper::body::Incoming;
use lapstrake_api_types::{ApiTypeError, ApiVersion, Form};

use crate::{
    ApiError, ApiErrorKind, AppState,
    body::{self, Answer, Body},
    build, elsewhere, grpc, history, images,
    request::DoorRequest,
    route::{Route, route, split_version},
    serve::Connection,
    session, system, transfer,
    unread::Unread,
};

/// Answers one request. Errors become answers here and nowhere else.
pub(crate) async fn respond(
    connection: Connection,
    request: Request<Incoming>,
) -> Result<Answer, Infallible> {
    if grpc::is_grpc(&request) {
        return Ok(grpc::respond(&connection.state, request).await);
    }
    let state = Arc::clone(&connection.state);
    let method = request.method().clone();
    let path = request.uri().path().to_owned();
    let unread = Unread::default();
    let mut answer = match enter(&connection, request, &unread).await {
        Ok(answer) => answer,
        Err(Refusal { error, is_plain }) => {
            if error.kind == ApiErrorKind::Internal {
                tracing::error!(%method, path, error = error.message, "request failed");
            } else {
                tracing::debug!(%method, path, error = error.message, "request refused");
            }
            // Clients older than API 1.24 print the body as it is.
            if is_plain {
                let text = format!("{}\n", error.message);
                body::answer(error.status(), "text/plain; charset=utf-8", Body::full(text))
            } else {
                body::error(&error)
            }
        }
    };
    if answer.status().is_client_error() || answer.status().is_server_error() {
        unread.drain().await;
    }
    add_common_headers(&state, &mut answer);
    if method == Method::HEAD {
        *answer.body_mut() = Body::empty();
    }
    Ok(answer)
}

struct Refusal {
    error: ApiError,
    is_plain: bool,
}

impl<E: Into<ApiError>> From<E> for Refusal {
    fn from(error: E) -> Self {
        Self { error: error.into(), is_plain: false }
    }
}

async fn enter(
    connection: &Connection,
    mut request: Request<Incoming>,
    unread: &Unread,
) -> Result<Answer, Refusal> {
    let path = percent_decode(request.uri().path())?;
    let (version, path) = split_version(&path);
    let api = match version {
        None => ApiVersion::MAX,
        Some(text) => ApiVersion::negotiate(text).map_err(|error| Refusal {
            is_plain: matches!(error, ApiTypeError::VersionTooOld { .. }),
            error: error.into(),
        })?,
    };
    let door = route(request.method(), path, api);
    // These doors take the connection over, and they do so before the request is taken apart.
    let upgrade = match door {
        Route::Session | Route::Grpc if request.version() == Version::HTTP_2 => {
            return Err(ApiError::invalid(
                "this needs a connection of HTTP/1.1, as it takes it over; on HTTP/2 there is gRPC itself",
            )
            .into());
        }
        Route::Session | Route::Grpc => Some(hyper::upgrade::on(&mut request)),
        _ => None,
    };
    let (parts, body) = request.into_parts();
    let body = unread.watch(body);
    let form = Form::parse(parts.uri.query().unwrap_or_default())?;
    let request = DoorRequest { method: parts.method, api, form, headers: Arc::new(parts.headers), body };
    let state = Arc::clone(&connection.state);
    let answer = match door {
        Route::Options => Ok(body::status(http::StatusCode::OK)),
        Route::Ping => Ok(system::ping(&request)),
        Route::Version => Ok(system::version(&state)),
        Route::Info => system::info(state, request).await,
        Route::Events => system::events(&state, &request),
        Route::DiskUsage => system::disk_usage(state, request).await,
        Route::Auth => system::auth(state, request).await,
        Route::Session => session::open(connection, &request, upgrade.expect("made for this door")),
        Route::Grpc => grpc::open(connection, &request, upgrade.expect("made for this door")),
        Route::Build => build::build(state, request).await,
        Route::BuildCancel => build::cancel(&state, &request),
        Route::BuildPrune => build::prune(state, request).await,
        Route::Distribution(name) => transfer::distribution(state, request, name).await,
        Route::ImageList => images::list(state, request).await,
        Route::ImageInspect(name) => images::inspect(state, request, name).await,
        Route::ImageHistory(name) => images::history(state, request, name).await,
        Route::ImageTag(name) => images::tag(state, request, name).await,
        Route::ImageDelete(name) => images::delete(state, request, name).await,
        Route::ImagePrune => images::prune(state, request).await,
        Route::ImageSearch => Err(elsewhere::search()),
        Route::ImageCreate => transfer::create(state, request).await,
        Route::ImageLoad => transfer::load(state, request).await,
        Route::ImageSave => {
            let names = request.form.all("names").map(str::to_owned).collect();
            transfer::save(state, request, names).await
        }
        Route::ImageSaveOne(name) => transfer::save(state, request, vec![name]).await,
        Route::ImagePush(name) => transfer::push(state, request, name).await,
        Route::History(door) => history::enter(state, request, door).await,
        Route::Absent(absent) => elsewhere::absent(&request, absent),
        Route::NotHere(what) => Err(elsewhere::not_here(what)),
        Route::NotFound => Err(ApiError::not_found("page not found")),
    };
    Ok(answer?)
}

/// Paths may be escaped; a name with `%2F` is one with a slash, as in Go's router.
fn percent_decode(path: &str) -> Result<String, ApiError> {
    // A plus is itself in a path.
    let form = Form::parse(&format!("p={}", path.replace('+', "%2B").replace('&', "%26")))?;
    Ok(form.get("p").to_owned())
}

fn add_common_headers(state: &AppState, answer: &mut Answer) {
    let headers = answer.headers_mut();
    let version = HeaderValue::from_str(&ApiVersion::MAX.to_string()).expect("digits and a dot");
    headers.insert("Api-Version", version);
    headers.insert("Docker-Experimental", HeaderValue::from_static("false"));
    headers.insert("Ostype", HeaderValue::from_static("linux"));
    if let Ok(server) = HeaderValue::from_str(&format!("Lapstrake/{} (linux)", state.facts.version)) {
        headers.insert(header::SERVER, server);
    }
}
