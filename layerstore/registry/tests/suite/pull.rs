//! Pulling, from registries honest and not.

use std::sync::Arc;

use axum::body::Body;
use lapstrake_layerstore_oci::{Digest, MediaType, Platform, Reference};
use lapstrake_layerstore_registry::{
    ClientOptions, ErrorKind, Item, RegistryClient, RegistryConfig, RegistryError, TransferStatus,
};

use crate::common::*;

async fn pull(client: &RegistryClient, fake: &Fake, yard: &Yard) -> Result<(), RegistryError> {
    client.pull(&fake.reference(), &linux(), &yard.target, &all_layers, &yard.progress).await.map(drop)
}

#[tokio::test]
async fn an_image_is_pulled_whole_for_its_platform() {
    let arm = Image::new(1, &Platform::new("linux", "arm64"), &[10]);
    let amd = Image::new(2, &linux(), &[70_000, 0, 300_000, 5]);
    let index = Image::index(&[(&Platform::new("linux", "arm64"), &arm), (&linux(), &amd)]);
    let fake = Fake::honest(&index).await;
    let (client, yard) = (client(), Yard::new());
    // Spawned, because the engine will: the future must be Send.
    let (c, r, t, p) = (client.clone(), fake.reference(), yard.target.clone(), yard.progress.clone());
    let pulled =
        tokio::spawn(async move { c.pull(&r, &linux(), &t, &all_layers, &p).await }).await.unwrap().unwrap();
    assert_eq!(pulled.image.root.digest, index.root().digest);
    assert_eq!(pulled.image.manifest_descriptor.digest, amd.root().digest);
    assert_eq!(pulled.image.id.digest(), &amd.config().digest);
    assert_eq!(pulled.fetched, [true; 4]);
    for digest in amd.blobs.keys().chain(amd.documents.keys()).chain([&index.root().digest]) {
        assert!(yard.has(digest) && yard.held(digest), "{digest}");
    }
    assert!(!yard.has(&arm.layer(0).digest));
    let layer = amd.layer(2);
    assert_eq!(
        yard.statuses(&layer.digest),
        ["Waiting", "Downloading", "Verifying Checksum", "Download complete"]
    );
    let events = yard.events.lock().unwrap().clone();
    let last = events.iter().rfind(|e| e.digest == layer.digest && e.current().is_some()).unwrap();
    assert_eq!((last.current(), last.total, last.item), (Some(300_000), 300_000, Item::Layer(2)));
    let config_done =
        events.iter().position(|e| e.item == Item::Config && e.status == TransferStatus::Downloaded);
    let first_layer = events.iter().position(|e| matches!(e.item, Item::Layer(_)));
    assert!(config_done < first_layer, "the config comes before layers");

    // All of it is in the store now: a second pull asks for the name only.
    pull(&client, &fake, &yard).await.unwrap();
    assert_eq!(fake.count("GET", "/blobs/"), amd.blobs.len());
    assert!(yard.statuses(&layer.digest).ends_with(&["Already exists".to_owned()]));
}

#[tokio::test]
async fn layers_the_caller_has_are_not_fetched() {
    let image = Image::new(1, &linux(), &[10, 20, 30]);
    let fake = Fake::honest(&image).await;
    let yard = Yard::new();
    let pulled = client()
        .pull(&fake.reference(), &linux(), &yard.target, &|q| q.index == 1, &yard.progress)
        .await
        .unwrap();
    assert_eq!(pulled.fetched, [false, true, false]);
    assert!(yard.has(&image.layer(1).digest) && !yard.has(&image.layer(0).digest));
}

/// Pulls from a registry that answers the request for the first layer as told, and returns the error.
async fn lie(answer: impl Fn(&Seen, &[u8]) -> Reply + Send + Sync + 'static) -> (RegistryError, Yard, Image) {
    let image = Image::new(1, &linux(), &[50_000, 10]);
    let served = image.clone();
    let fake = Fake::start(move |seen| match seen.is_blob(served.layer(0)) {
        true => answer(seen, &served.blobs[&served.layer(0).digest]),
        false => served.serve(seen).into(),
    })
    .await;
    let yard = Yard::new();
    let e = pull(&impatient(), &fake, &yard).await.expect_err("a lie");
    assert!(e.to_string().contains(&fake.host), "{e}");
    assert!(e.to_string().contains(image.layer(0).digest.as_str()), "{e}");
    assert!(!yard.has(&image.layer(0).digest));
    yard.no_open_writers().await;
    (e, yard, image)
}

#[tokio::test]
async fn a_wrong_digest_is_refused() {
    let (e, _, image) = lie(|seen, bytes| {
        let mut bytes = bytes.to_vec();
        bytes[100] ^= 1;
        blob(seen, &bytes).into()
    })
    .await;
    assert!(matches!(e, RegistryError::DigestMismatch { expected, .. } if expected == image.layer(0).digest));
}

#[tokio::test]
async fn short_and_long_bodies_are_refused() {
    for length in [49_999usize, 50_001, 0, 100_000] {
        for announced in [true, false] {
            let (e, _, _) = lie(move |_, bytes| {
                let mut bytes = bytes.to_vec();
                bytes.resize(length, 0);
                if announced {
                    return status(200).body(Body::from(bytes)).unwrap().into();
                }
                let stream = futures::stream::iter([Ok::<_, std::io::Error>(bytes)]);
                status(200).body(Body::from_stream(stream)).unwrap().into()
            })
            .await;
            assert!(matches!(e, RegistryError::SizeMismatch { expected: 50_000, .. }), "{e}");
            assert_eq!(e.kind(), ErrorKind::Corrupt);
        }
    }
}

#[tokio::test]
async fn an_endless_body_is_cut_off_at_its_size() {
    let (e, _, _) = lie(|_, _| {
        let endless = futures::stream::repeat_with(|| Ok::<_, std::io::Error>(vec![0; 1 << 16]));
        status(200).body(Body::from_stream(endless)).unwrap().into()
    })
    .await;
    assert!(matches!(e, RegistryError::SizeMismatch { actual, .. } if actual < 10 << 20), "{e}");
}

#[tokio::test]
async fn a_registry_that_hangs_is_given_up() {
    let (e, _, _) = lie(|_, _| Reply::Never).await;
    assert!(matches!(e, RegistryError::Stalled { .. }), "{e}");
    let (e, _, _) = lie(|_, bytes| stuck(bytes.len(), &bytes[..1000]).into()).await;
    assert!(matches!(e, RegistryError::Stalled { .. }), "{e}");
}

#[tokio::test]
async fn a_range_that_was_not_asked_for_is_refused() {
    let (e, _, _) = lie(|seen, bytes| match seen.nth {
        0 => broken(bytes.len(), &bytes[..1000]).into(),
        _ => status(206)
            .header("content-range", format!("bytes 7-{}/{}", bytes.len() - 1, bytes.len()))
            .body(Body::from(bytes[7..].to_vec()))
            .unwrap()
            .into(),
    })
    .await;
    assert!(matches!(e, RegistryError::Malformed { .. }), "{e}");
}

#[tokio::test]
async fn errors_that_last_end_the_pull_in_the_registrys_words() {
    let (e, _, _) = lie(|_, _| error(500, "UNKNOWN", "disk\n\u{1b}[31mfull").into()).await;
    assert!(e.to_string().ends_with("unexpected status 500: unknown: disk  [31mfull"), "{e}");
}

#[tokio::test]
async fn passing_errors_are_waited_out() {
    for first in [429u16, 500, 503] {
        let image = Image::new(1, &linux(), &[1000]);
        let served = image.clone();
        let fake = Fake::start(move |seen| match seen.nth {
            0 => status(first).header("retry-after", "3600").body(Body::empty()).unwrap().into(),
            _ => served.serve(seen).into(),
        })
        .await;
        let yard = Yard::new();
        pull(&client(), &fake, &yard).await.unwrap();
        assert!(yard.has(&image.layer(0).digest));
    }
}

#[tokio::test]
async fn a_broken_download_goes_on_where_it_was() {
    for ranges in [true, false] {
        let image = Image::new(1, &linux(), &[400_000]);
        let served = image.clone();
        let fake = Fake::start(move |seen| {
            let layer = served.layer(0);
            if !seen.is_blob(layer) {
                return served.serve(seen).into();
            }
            let bytes = &served.blobs[&layer.digest];
            match (seen.nth, ranges) {
                (0, _) => broken(bytes.len(), &bytes[..150_000]).into(),
                (_, true) => blob(seen, bytes).into(),
                // A registry without ranges begins anew.
                (_, false) => status(200).body(Body::from(bytes.clone())).unwrap().into(),
            }
        })
        .await;
        let yard = Yard::new();
        pull(&client(), &fake, &yard).await.unwrap();
        let layer = image.layer(0);
        assert!(yard.has(&layer.digest));
        assert!(yard.statuses(&layer.digest).iter().any(|s| s.starts_with("Retrying")));
        let log = fake.log.lock().unwrap();
        let second = log.iter().filter(|s| s.is_blob(layer)).nth(1).unwrap();
        assert!(
            second.header("range").is_some_and(|r| r.starts_with("bytes=") && r.ends_with('-')),
            "{second:?}"
        );
    }
}

#[tokio::test]
async fn a_registry_that_always_breaks_off_is_given_up() {
    let (e, _, _) = lie(|seen, bytes| {
        let from =
            seen.header("range").and_then(|r| r[6..].trim_end_matches('-').parse().ok()).unwrap_or(0usize);
        let mut response = broken(bytes.len() - from, &bytes[from..from + 10]);
        if from > 0 {
            *response.status_mut() = http::StatusCode::PARTIAL_CONTENT;
            let range = format!("bytes {from}-{}/{}", bytes.len() - 1, bytes.len());
            response.headers_mut().insert("content-range", range.parse().unwrap());
        }
        response.into()
    })
    .await;
    assert!(matches!(e, RegistryError::Transport { .. }), "{e}");
}

#[tokio::test]
async fn a_wrong_size_of_a_blob_that_is_there_is_refused() {
    let image = Image::new(1, &linux(), &[1000]);
    let fake = Fake::honest(&image).await;
    let yard = Yard::new();
    pull(&client(), &fake, &yard).await.unwrap();
    let mut d = image.layer(0).clone();
    d.size = 999;
    let e = client().fetch_blob(&fake.reference(), &d, &yard.target).await.unwrap_err();
    assert!(matches!(e, RegistryError::SizeMismatch { expected: 999, actual: 1000, .. }), "{e}");
}

#[tokio::test]
async fn foreign_layers_come_from_their_urls_only_over_https() {
    let mut image = Image::new(1, &linux(), &[1000]);
    let mut manifest = image.manifest.clone().unwrap();
    manifest.layers[0].media_type = MediaType::DOCKER_FOREIGN_LAYER_GZIP;
    manifest.layers[0].urls = vec!["http://127.0.0.1:1/x".to_owned(), "file:///etc/passwd".to_owned()];
    image.root = Some(image.add(MediaType::DOCKER_MANIFEST, manifest.to_json().unwrap()));
    image.blobs.remove(&manifest.layers[0].digest);
    let fake = Fake::honest(&image).await;
    let e = pull(&client(), &fake, &Yard::new()).await.unwrap_err();
    assert!(matches!(e, RegistryError::NotFound { .. }), "{e}");
}

#[tokio::test]
async fn a_missing_manifest_is_told_in_dockers_words() {
    let fake = Fake::honest(&Image::new(1, &linux(), &[1])).await;
    let r = fake.reference().with_tag("nope").unwrap();
    let e = client().resolve(&r).await.unwrap_err();
    assert_eq!(
        e.to_string(),
        format!("manifest for {}/team/app:nope not found: manifest unknown: manifest unknown", fake.host)
    );
    assert_eq!(e.kind(), ErrorKind::NotFound);
}

#[tokio::test]
async fn no_manifest_for_the_platform_names_those_there_are() {
    let arm = Platform::new("linux", "arm64");
    let index = Image::index(&[(&arm, &Image::new(1, &arm, &[1]))]);
    let fake = Fake::honest(&index).await;
    let e = pull(&client(), &fake, &Yard::new()).await.unwrap_err();
    assert!(
        e.to_string()
            .ends_with("no matching manifest for linux/amd64 in the manifest list entries (linux/arm64)"),
        "{e}"
    );
}

#[tokio::test]
async fn schema_1_is_refused_by_name() {
    let mut image = Image::default();
    let text = br#"{"schemaVersion":1,"name":"x","fsLayers":[],"signatures":[]}"#.to_vec();
    image.root = Some(image.add(MediaType::DOCKER_SCHEMA1_SIGNED, text));
    let fake = Fake::honest(&image).await;
    let e = client().resolve(&fake.reference()).await.unwrap_err();
    assert!(matches!(e, RegistryError::Schema1 { .. }), "{e}");
}

#[tokio::test]
async fn things_that_are_no_images_are_refused() {
    let mut image = Image::new(1, &linux(), &[1]);
    let mut manifest = image.manifest.clone().unwrap();
    manifest.config.media_type = MediaType::DOCKER_PLUGIN_CONFIG;
    image.root = Some(image.add(MediaType::DOCKER_MANIFEST, manifest.to_json().unwrap()));
    let fake = Fake::honest(&image).await;
    let e = pull(&client(), &fake, &Yard::new()).await.unwrap_err();
    assert!(matches!(e, RegistryError::NotAnImage { .. }), "{e}");
    let html = Fake::start(|_| {
        status(200).header("content-type", "text/html").body(Body::from("<html>")).unwrap().into()
    })
    .await;
    assert!(matches!(client().resolve(&html.reference()).await, Err(RegistryError::Malformed { .. })));
}

#[tokio::test]
async fn manifests_that_are_not_what_their_digest_says_are_refused() {
    let image = Image::new(1, &linux(), &[1]);
    let other = Image::new(2, &linux(), &[2]);
    // HEAD tells one digest, GET has another document.
    let (served, lie) = (image.clone(), other.documents.values().next().unwrap().1.clone());
    let fake = Fake::start(move |seen| {
        if seen.method == "GET" && seen.path.contains("/manifests/") {
            return document(&MediaType::DOCKER_MANIFEST, &served.root().digest, &lie).into();
        }
        served.serve(seen).into()
    })
    .await;
    let yard = Yard::new();
    let e = pull(&client(), &fake, &yard).await.unwrap_err();
    assert_eq!(e.kind(), ErrorKind::Corrupt, "{e}");
    assert_eq!(yard.blobs(), 0);
    // Nor is a header believed that contradicts the bytes of a GET by tag.
    let text = other.documents.values().next().unwrap().1.clone();
    let fake = Fake::start(move |seen| {
        if seen.method == "HEAD" {
            return status(405).body(Body::empty()).unwrap().into();
        }
        document(&MediaType::DOCKER_MANIFEST, &Digest::sha256_of("x"), &text).into()
    })
    .await;
    let e = client().resolve(&fake.reference()).await.unwrap_err();
    assert!(matches!(e, RegistryError::DigestMismatch { .. }), "{e}");
}

#[tokio::test]
async fn a_document_with_two_meanings_is_refused() {
    let mut image = Image::new(1, &linux(), &[1]);
    let bytes = image.documents[&image.root().digest].1.clone();
    image.root = Some(image.add(MediaType::OCI_INDEX, bytes));
    let d = image.root().digest.clone();
    let fake = Fake::honest(&image).await;
    let r = fake.reference().with_digest(d);
    let yard = Yard::new();
    let e = client().pull(&r, &linux(), &yard.target, &all_layers, &yard.progress).await.unwrap_err();
    assert!(matches!(e, RegistryError::Malformed { .. }), "{e}");
}

#[tokio::test]
async fn endless_and_huge_manifests_are_cut_off() {
    let image = Image::new(1, &linux(), &[1]);
    for announced in [true, false] {
        let d = image.root().digest.clone();
        let fake = Fake::start(move |seen| {
            let mut r = status(200).header("content-type", MediaType::OCI_MANIFEST.as_str());
            r = r.header("docker-content-digest", d.as_str());
            if seen.method == "HEAD" {
                return r
                    .header("content-length", if announced { 5u64 << 20 } else { 10 })
                    .body(Body::empty())
                    .unwrap()
                    .into();
            }
            let endless = futures::stream::repeat_with(|| Ok::<_, std::io::Error>(vec![b' '; 1 << 16]));
            r.body(Body::from_stream(endless)).unwrap().into()
        })
        .await;
        let e = pull(&client(), &fake, &Yard::new()).await.unwrap_err();
        assert!(matches!(e, RegistryError::TooLarge { limit, .. } if limit == 4 << 20), "{e}");
    }
}

#[tokio::test]
async fn concurrent_pulls_of_one_blob_download_it_once() {
    let image = Image::new(1, &linux(), &[200_000]);
    let fake = Fake::honest(&image).await;
    let (client, yard) = (client(), Yard::new());
    let pulls = (0..8).map(|_| pull(&client, &fake, &yard));
    for result in futures::future::join_all(pulls).await {
        result.unwrap();
    }
    assert_eq!(fake.count("GET", image.layer(0).digest.as_str()), 1);
}

#[tokio::test]
async fn a_dropped_pull_leaves_nothing_and_who_waited_takes_over() {
    let image = Image::new(1, &linux(), &[100_000]);
    let served = image.clone();
    let begun = Arc::new(tokio::sync::Notify::new());
    let signal = begun.clone();
    let fake = Fake::start(move |seen| {
        if seen.is_blob(served.layer(0)) && seen.nth == 0 {
            signal.notify_one();
            let bytes = &served.blobs[&served.layer(0).digest];
            return stuck(bytes.len(), &bytes[..50_000]).into();
        }
        served.serve(seen).into()
    })
    .await;
    let (client, yard) = (client(), Yard::new());
    let mut first = Box::pin(pull(&client, &fake, &yard));
    tokio::select! {
        _ = &mut first => panic!("the registry is stuck"),
        () = begun.notified() => {}
    }
    let second = pull(&client, &fake, &yard);
    tokio::pin!(second);
    // The second waits for the first …
    let waiting = async {
        while !yard.statuses(&image.layer(0).digest).contains(&"Downloading".to_owned()) {
            tokio::task::yield_now().await;
        }
    };
    tokio::select! {
        _ = &mut first => panic!("the registry is stuck"),
        _ = &mut second => panic!("the first has the turn"),
        () = waiting => {}
    }
    assert!(!yard.has(&image.layer(0).digest));
    // … which is cancelled.
    drop(first);
    second.await.unwrap();
    assert!(yard.has(&image.layer(0).digest));
    yard.no_open_writers().await;
}

#[tokio::test]
async fn mirrors_are_asked_first_and_passed_over_when_they_fail() {
    let image = Image::new(1, &linux(), &[1000]);
    let (good, bad) =
        (Fake::honest(&image).await, Fake::start(|_| error(404, "NAME_UNKNOWN", "no").into()).await);
    let corrupt = image.clone();
    let liar = Fake::start(move |seen| match seen.is_blob(corrupt.layer(0)) {
        true => status(200).body(Body::from(vec![0; 1000])).unwrap().into(),
        false => corrupt.serve(seen).into(),
    })
    .await;
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let dead = listener.local_addr().unwrap();
    drop(listener);
    let toml = format!(
        "[registry.\"registry.invalid\"]\nmirrors = [\"{dead}\", \"{}\", \"{}/cache\", \"{}\"]",
        bad.host, liar.host, good.host
    );
    let client = RegistryClient::new(RegistryConfig::from_toml(&toml).unwrap(), options());
    let yard = Yard::new();
    let r = Reference::parse("registry.invalid/team/app").unwrap();
    client.pull(&r, &linux(), &yard.target, &all_layers, &yard.progress).await.unwrap();
    assert!(yard.has(&image.layer(0).digest));
    let log = liar.log.lock().unwrap();
    let layer = log.iter().find(|s| s.is_blob(image.layer(0))).unwrap();
    assert_eq!(layer.path, format!("/v2/cache/team/app/blobs/{}", image.layer(0).digest));
    assert_eq!(layer.query, "ns=registry.invalid");
    assert_eq!(good.count("GET", "/blobs/"), 1);
}

#[tokio::test]
async fn the_registry_itself_is_asked_when_no_mirror_has_it() {
    let image = Image::new(1, &linux(), &[1000]);
    let mirror = Fake::start(|_| error(404, "NAME_UNKNOWN", "no").into()).await;
    let broken = Fake::start(|_| error(503, "UNAVAILABLE", "").into()).await;
    let registry = Fake::honest(&image).await;
    let toml =
        format!("[registry.\"{}\"]\nmirrors = [\"{}\", \"{}\"]", registry.host, mirror.host, broken.host);
    let client = RegistryClient::new(RegistryConfig::from_toml(&toml).unwrap(), options());
    let yard = Yard::new();
    pull(&client, &registry, &yard).await.unwrap();
    assert!(yard.has(&image.layer(0).digest));
    let asked =
        |fake: &Fake| fake.log.lock().unwrap().iter().map(|seen| seen.query.clone()).collect::<Vec<_>>();
    let namespace = format!("ns={}", registry.host.replace(':', "%3A"));
    assert!(asked(&mirror).iter().all(|query| *query == namespace));
    assert!(!asked(&mirror).is_empty() && !asked(&broken).is_empty());
    assert!(asked(&registry).iter().all(String::is_empty), "the registry is not told whom it stands for");
}

#[tokio::test]
async fn nobody_listening_is_an_error_at_once() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let host = listener.local_addr().unwrap().to_string();
    drop(listener);
    let patient = RegistryClient::new(RegistryConfig::default(), ClientOptions::default());
    let e = patient.resolve(&Reference::parse(&format!("{host}/x")).unwrap()).await.unwrap_err();
    assert!(matches!(e, RegistryError::Connect { refused: true, .. }), "{e}");
}

#[tokio::test]
async fn a_plain_registry_elsewhere_is_not_spoken_to_in_the_clear() {
    let fake = Fake::honest(&Image::new(1, &linux(), &[1])).await;
    let toml = format!("[registry.\"{}\"]\nhttp = false", fake.host);
    let client = RegistryClient::new(RegistryConfig::from_toml(&toml).unwrap(), options());
    let e = client.resolve(&fake.reference()).await.unwrap_err();
    assert!(matches!(e, RegistryError::Tls { .. } | RegistryError::Connect { .. }), "{e}");
    assert_eq!(fake.log.lock().unwrap().len(), 0);
}

#[tokio::test]
async fn tags_are_listed_page_by_page() {
    let fake = Fake::start(|seen| {
        assert_eq!(seen.path, "/v2/team/app/tags/list");
        let page = |tags: &str, next: &str| {
            let link = format!("</v2/team/app/tags/list?{next}>; rel=\"next\"");
            status(200).header("link", link).body(Body::from(format!("{{\"tags\":{tags}}}"))).unwrap().into()
        };
        match seen.query.as_str() {
            "n=1000" => page("[\"1\",\"not a tag\"]", "last=1"),
            "last=1" => page("[\"latest\"]", "last=latest"),
            // It leads in circles.
            "last=latest" => page("null", "last=latest"),
            other => panic!("{other}"),
        }
    })
    .await;
    let tags = client().tags(&fake.reference()).await.unwrap();
    assert_eq!(tags.iter().filter_map(Reference::tag).collect::<Vec<_>>(), ["1", "latest"]);
    assert!(tags.iter().all(|tag| tag.name() == fake.reference().name()));
}

#[tokio::test]
async fn tags_of_a_repository_that_is_not_there_are_an_error() {
    let fake =
        Fake::start(|_| error(404, "NAME_UNKNOWN", "repository name not known to registry").into()).await;
    let error = client().tags(&fake.reference()).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NotFound, "{error}");
}
