//! Images in and out: pull, import, push, load, save, and what a registry says of a name.

use std::{future::Future, sync::Arc};

use bytes::Bytes;
use futures::{FutureExt, StreamExt, future::BoxFuture};
use http::StatusCode;
use lapstrake_api_types::{
    EventAction, StreamMessage, decode_platform, decode_platforms, repo_tag_reference,
};
use lapstrake_layerstore_oci::{AnyReference, Digest, Platform, Reference};
use tokio::sync::mpsc;

use crate::{
    ApiError, ApiErrorKind, AppState, BodyStream, ImportOrder, LoadOrder, PullOrder, PushOrder, SaveOrder,
    TransferNews, TransferSink,
    body::{self, Answer, StreamWriter},
    request::DoorRequest,
};

/// News that may wait for a client that reads slowly.
const NEWS_DEPTH: usize = 64;

pub(crate) async fn create(state: Arc<AppState>, request: DoorRequest) -> Result<Answer, ApiError> {
    let form = &request.form;
    let platform = match form.get("platform") {
        text if !text.is_empty() && request.api.at_least(32) => {
            Some(Platform::parse(text).map_err(|error| ApiError::invalid(error.to_string()))?)
        }
        _ => None,
    };
    if form.get("fromImage").is_empty() {
        import(state, request, platform).await
    } else {
        pull(state, request, platform).await
    }
}

async fn pull(
    state: Arc<AppState>,
    request: DoorRequest,
    platform: Option<Platform>,
) -> Result<Answer, ApiError> {
    let reference = pull_reference(request.form.get("fromImage"), request.form.get("tag"))?;
    let (sink, news) = mpsc::channel(NEWS_DEPTH);
    let order = PullOrder { reference: reference.clone(), platform, auth: request.auth() };
    let work = async move {
        let pulled = state.transfer.pull(order, sink).await?;
        for (name, id) in &pulled.images {
            state.events.tell_image(&state.stores, EventAction::Pull, id, &name.familiar());
        }
        let mut ending = Vec::new();
        if let Some(digest) = &pulled.digest {
            ending.push(StreamMessage::status(format!("Digest: {digest}")));
        }
        let name = reference.familiar();
        ending.push(StreamMessage::status(if pulled.is_newer {
            format!("Status: Downloaded newer image for {name}")
        } else {
            format!("Status: Image is up to date for {name}")
        }));
        Ok(ending)
    };
    streamed(Vec::new(), news, work).await
}

/// The name that a pull means: `tag` may be a digest, and the name may end in a colon (`pull -a` of old clients).
fn pull_reference(image: &str, tag: &str) -> Result<Reference, ApiError> {
    let invalid = |error: lapstrake_layerstore_oci::OciError| ApiError::invalid(error.to_string());
    let mut reference = Reference::parse(image.trim_end_matches(':')).map_err(invalid)?;
    if !tag.is_empty() {
        reference = match Digest::parse(tag) {
            Ok(digest) => reference.trimmed().with_digest(digest),
            Err(_) => reference.with_tag(tag).map_err(invalid)?,
        };
    }
    if reference.familiar_name() == "scratch" {
        return Err(ApiError::new(ApiErrorKind::Forbidden, "'scratch' is a reserved name"));
    }
    Ok(reference)
}

async fn import(
    state: Arc<AppState>,
    request: DoorRequest,
    platform: Option<Platform>,
) -> Result<Answer, ApiError> {
    let form = &request.form;
    let source = form.get("fromSrc").to_owned();
    if source.is_empty() {
        return Err(ApiError::invalid(
            "nothing to pull or import: parameters fromImage and fromSrc are empty",
        ));
    }
    let mut message = form.get("message").to_owned();
    if message.is_empty() {
        message = format!("Imported from {source}");
    }
    let order = ImportOrder {
        reference: repo_tag_reference(form.get("repo"), form.get("tag"))?,
        platform,
        message,
        changes: form.all("changes").map(str::to_owned).collect(),
    };
    let limit = state.limits.upload_bytes;
    let (sink, news) = mpsc::channel(NEWS_DEPTH);
    let (archive, opening) = if source == "-" {
        (request.body_stream(limit), Vec::new())
    } else {
        let url = if source.contains("://") { source } else { format!("http://{source}") };
        let (stream, total) = state.transfer.download(url.clone()).await?;
        let status = StreamMessage::status(format!("Downloading from {url}"));
        (counted(stream, total.unwrap_or(0), sink.clone()), vec![status])
    };
    let work = async move {
        let imported = state.transfer.import(order, archive).await?;
        state.events.tell_image(&state.stores, EventAction::Import, &imported.id, imported.id.as_str());
        drop(sink);
        Ok(vec![StreamMessage::status(imported.id.to_string())])
    };
    streamed(opening, news, work).await
}

/// Reports a download's progress as it is read, about every half mebibyte.
fn counted(stream: BodyStream, total: u64, sink: TransferSink) -> BodyStream {
    const STEP: u64 = 512 * 1024;
    let (mut current, mut told) = (0_u64, 0_u64);
    body::boxed(stream.inspect(move |chunk| {
        let Ok(chunk) = chunk else { return };
        current += chunk.len() as u64;
        if current - told >= STEP || current == total {
            told = current;
            // Progress that finds no room is left out: more comes.
            let _ = sink.try_send(TransferNews::Progress {
                id: "Importing".to_owned(),
                action: "Importing".to_owned(),
                current,
                total,
            });
        }
    }))
}

pub(crate) async fn push(
    state: Arc<AppState>,
    request: DoorRequest,
    name: String,
) -> Result<Answer, ApiError> {
    let tag = request.form.get("tag");
    let reference = if tag.is_empty() {
        Reference::parse(&name).map_err(|error| ApiError::invalid(error.to_string()))?
    } else {
        repo_tag_reference(&name, tag)?.ok_or_else(|| ApiError::invalid("invalid reference format"))?
    };
    let platform = match request.form.get("platform") {
        text if !text.is_empty() && request.api.at_least(46) => Some(decode_platform(text)?),
        _ => None,
    };
    let (sink, news) = mpsc::channel(NEWS_DEPTH);
    let opening = StreamMessage::status(format!("The push refers to repository [{}]", reference.name()));
    let order = PushOrder { reference, platform, auth: request.auth() };
    let work = async move {
        let pushed = state.transfer.push(order, sink).await?;
        let mut ending = Vec::new();
        for (name, digest, size) in pushed.manifests {
            let tag = name.tag().unwrap_or_default();
            ending.push(StreamMessage::status(format!("{tag}: digest: {digest} size: {size}")));
            ending.push(StreamMessage {
                progress: Some(Default::default()),
                ..StreamMessage::aux(
                    None,
                    serde_json::json!({ "Tag": tag, "Digest": digest.to_string(), "Size": size }),
                )
            });
            if let Ok(record) = state.stores.images.find(&name.to_string()) {
                state.events.tell_record(EventAction::Push, &record.id, &name.familiar(), Some(&record));
            }
        }
        Ok(ending)
    };
    // As Moby: the first line is written before anything can go wrong.
    streamed(vec![opening], news, work).await
}

pub(crate) async fn load(state: Arc<AppState>, request: DoorRequest) -> Result<Answer, ApiError> {
    let platforms = decode_platforms(request.form.all("platform"), request.api)?;
    let quiet = request.form.flag_or("quiet", true);
    let archive = request.body_stream(state.limits.upload_bytes);
    let (sink, news) = mpsc::channel(NEWS_DEPTH);
    let work = async move {
        let loaded = state.transfer.load(LoadOrder { platforms, quiet }, archive, sink).await?;
        let mut ending = Vec::new();
        for (id, names) in loaded.images {
            if names.is_empty() {
                ending.push(StreamMessage::stream(format!("Loaded image ID: {id}\n")));
            }
            for name in names {
                ending.push(StreamMessage::stream(format!("Loaded image: {}\n", name.familiar())));
            }
            state.events.tell_image(&state.stores, EventAction::Load, &id, id.as_str());
        }
        Ok(ending)
    };
    streamed(Vec::new(), news, work).await
}

pub(crate) async fn save(
    state: Arc<AppState>,
    request: DoorRequest,
    names: Vec<String>,
) -> Result<Answer, ApiError> {
    if names.iter().all(|name| name.trim().is_empty()) {
        return Err(ApiError::invalid("no image to save: parameter names is empty"));
    }
    let platforms = decode_platforms(request.form.all("platform"), request.api)?;
    let (sink, mut chunks) = mpsc::channel::<Bytes>(4);
    let mut writing = state.transfer.save(SaveOrder { names, platforms }, sink).await?;
    let (writer, body) = body::stream(None);
    tokio::spawn(async move {
        // Dropped when the client is gone, and with it the work.
        let end = loop {
            tokio::select! {
                biased;
                () = writer.closed() => return,
                chunk = chunks.recv() => match chunk {
                    Some(chunk) => if writer.send(chunk).await.is_err() { return },
                    None => break writing.await,
                },
                end = &mut writing => {
                    while let Some(chunk) = chunks.recv().await {
                        if writer.send(chunk).await.is_err() {
                            return;
                        }
                    }
                    break end;
                }
            }
        };
        match end {
            Ok(images) => {
                for id in images {
                    state.events.tell_image(&state.stores, EventAction::Save, &id, id.as_str());
                }
            }
            // A tar stream has no place for an error, and one that just stops could pass for whole.
            Err(error) => {
                tracing::error!(%error, "image archive not completed");
                writer.cut_off(error.message).await;
            }
        }
    });
    Ok(body::answer(StatusCode::OK, "application/x-tar", body))
}

pub(crate) async fn distribution(
    state: Arc<AppState>,
    request: DoorRequest,
    name: String,
) -> Result<Answer, ApiError> {
    let reference = match Reference::parse_any(&name) {
        Ok(AnyReference::Name(reference)) => reference.with_default_tag(),
        Ok(AnyReference::Digest(_)) => {
            return Err(ApiError::new(ApiErrorKind::Internal, "no manifest found for full image ID"));
        }
        Err(error) => return Err(ApiError::invalid(error.to_string())),
    };
    let found = state.transfer.inspect(reference, request.auth()).await?;
    Ok(body::ok(&found))
}

/// Runs work whose news are a stream of messages. An error before the first message has a status of its own, one after it is
/// the stream's last message. A client that goes away drops the work.
async fn streamed(
    opening: Vec<StreamMessage>,
    mut news: mpsc::Receiver<TransferNews>,
    work: impl Future<Output = Result<Vec<StreamMessage>, ApiError>> + Send + 'static,
) -> Result<Answer, ApiError> {
    let mut work: BoxFuture<'static, _> = work.boxed();
    let mut first: Vec<StreamMessage> = opening;
    let mut ended = None;
    if first.is_empty() {
        tokio::select! {
            biased;
            Some(one) = news.recv() => first.push(message(one)),
            end = &mut work => {
                // It may have said something on its last stretch.
                match (news.try_recv(), end) {
                    (Err(_), Err(error)) => return Err(error),
                    (Err(_), end) => ended = Some(end),
                    (Ok(one), end) => {
                        first.push(message(one));
                        ended = Some(end);
                    }
                }
            }
        }
    }
    let (writer, body) = body::stream(None);
    tokio::spawn(async move {
        // Whoever stops listening ends this, and dropping `work` cancels it.
        let _ = relay(&writer, first, news, work, ended).await;
    });
    Ok(body::answer(StatusCode::OK, "application/json", body))
}

async fn relay(
    writer: &StreamWriter,
    first: Vec<StreamMessage>,
    mut news: mpsc::Receiver<TransferNews>,
    mut work: BoxFuture<'static, Result<Vec<StreamMessage>, ApiError>>,
    ended: Option<Result<Vec<StreamMessage>, ApiError>>,
) -> Result<(), body::Gone> {
    for one in &first {
        writer.message(one).await?;
    }
    let end = match ended {
        Some(end) => end,
        None => loop {
            tokio::select! {
                biased;
                () = writer.closed() => return Err(body::Gone),
                Some(one) = news.recv() => writer.message(&message(one)).await?,
                end = &mut work => break end,
            }
        },
    };
    drain(writer, &mut news).await?;
    match end {
        Ok(ending) => {
            for one in ending {
                writer.message(&one).await?;
            }
            Ok(())
        }
        Err(error) => writer.error(&error).await,
    }
}

/// What was said before the work ended.
async fn drain(writer: &StreamWriter, news: &mut mpsc::Receiver<TransferNews>) -> Result<(), body::Gone> {
    while let Ok(one) = news.try_recv() {
        writer.message(&message(one)).await?;
    }
    Ok(())
}

fn message(news: TransferNews) -> StreamMessage {
    match news {
        TransferNews::Status { id: Some(id), text } => StreamMessage::status(text).about(id),
        TransferNews::Status { id: None, text } => StreamMessage::status(text),
        TransferNews::Progress { id, action, current, total } => {
            StreamMessage::progress(id, action, current, total)
        }
        TransferNews::Text(text) => StreamMessage::stream(text),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pulls_name_a_tag_a_digest_or_everything() {
        let digest = "sha256:0123456789012345678901234567890123456789012345678901234567890123";
        let name = |image: &str, tag: &str| pull_reference(image, tag).map(|name| name.familiar());
        assert_eq!(name("a", "1").unwrap(), "a:1");
        assert_eq!(name("a:", "").unwrap(), "a");
        assert_eq!(name("a:2", digest).unwrap(), format!("a@{digest}"));
        assert_eq!(name("scratch", "").unwrap_err().kind, ApiErrorKind::Forbidden);
        assert_eq!(name("A", "").unwrap_err().kind, ApiErrorKind::Invalid);
    }
}
