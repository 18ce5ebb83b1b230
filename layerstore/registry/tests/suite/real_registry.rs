//! Against the real thing: Debian's `docker-registry`, with and without passwords.

use std::sync::Arc;

use lapstrake_layerstore_conformance::docker_registry::{PASSWORD, Registry, USER};
use lapstrake_layerstore_oci::{Platform, Reference};
use lapstrake_layerstore_registry::{
    ClientOptions, Credentials, ErrorKind, PushSource, RegistryClient, RegistryConfig, RegistryError, Secret,
    StaticCredentials, TransferStatus, UploadMode,
};

use crate::common::*;

fn chunked(size: u64) -> RegistryClient {
    let options = ClientOptions { upload: UploadMode::Chunked(size), ..options() };
    RegistryClient::new(RegistryConfig::default(), options)
}

fn source(yard: &Yard, image: &Image) -> PushSource {
    yard.put_image(image);
    PushSource {
        content: yard.target.content.clone(),
        root: image.root().clone(),
        mounts: Default::default(),
    }
}

async fn assert_pulls(client: &RegistryClient, reference: &Reference, image: &Image) {
    let yard = Yard::new();
    let pulled =
        client.pull(reference, &linux(), &yard.target, &all_layers, &yard.progress).await.expect("pull");
    assert_eq!(pulled.image.root.digest, image.root().digest);
    for d in pulled.image.manifest.layers.iter().chain([&pulled.image.manifest.config]) {
        assert!(yard.has(&d.digest));
    }
}

#[tokio::test]
async fn what_is_pushed_can_be_pulled() {
    let registry = Registry::start();
    for (name, client) in [("whole", client()), ("in-chunks", chunked(100_000))] {
        let image = Image::new(name.len() as u8, &linux(), &[350_000, 100_000, 1, 0]);
        let (yard, reference) = (Yard::new(), registry.reference(name));
        let source = source(&yard, &image);
        let pushed = client.push(&reference, &source, &yard.progress).await.unwrap();
        assert_eq!(pushed.reference.tag(), Some("latest"));
        assert_eq!(yard.statuses(&image.layer(0).digest), ["Waiting", "Pushing", "Pushed"]);
        let sent = yard
            .events
            .lock()
            .unwrap()
            .iter()
            .filter_map(|e| (e.digest == image.layer(0).digest).then(|| e.current()).flatten())
            .max();
        assert_eq!(sent, Some(350_000));
        assert_pulls(&client, &reference, &image).await;

        // Again: nothing is sent.
        client.push(&reference.clone().with_tag("v2").unwrap(), &source, &yard.progress).await.unwrap();
        assert!(yard.statuses(&image.layer(0).digest).contains(&"Layer already exists".to_owned()));
        assert_pulls(&client, &reference.with_tag("v2").unwrap(), &image).await;
    }
}

#[tokio::test]
async fn an_index_is_pushed_with_its_images() {
    let registry = Registry::start();
    let arm = Platform::new("linux", "arm64");
    let image =
        Image::index(&[(&arm, &Image::new(1, &arm, &[10])), (&linux(), &Image::new(2, &linux(), &[20]))]);
    let (yard, reference) = (Yard::new(), registry.reference("multi:1"));
    client().push(&reference, &source(&yard, &image), &yard.progress).await.unwrap();
    assert_pulls(&client(), &reference, &image).await;
    let yard = Yard::new();
    let pulled = client().pull(&reference, &arm, &yard.target, &all_layers, &yard.progress).await.unwrap();
    assert_eq!(pulled.image.config.architecture, "arm64");
    // By digest, too.
    assert_pulls(&client(), &reference.with_digest(image.root().digest.clone()), &image).await;
}

#[tokio::test]
async fn blobs_are_mounted_from_other_repositories() {
    let registry = Registry::start();
    let image = Image::new(1, &linux(), &[100_000]);
    let yard = Yard::new();
    let mut source = source(&yard, &image);
    let first = registry.reference("first");
    client().push(&first, &source, &yard.progress).await.unwrap();
    let elsewhere = Reference::parse("docker.io/library/first").unwrap();
    source.mounts.insert(image.layer(0).digest.clone(), vec![elsewhere, first]);
    // A lender that does not have it: uploaded instead.
    source.mounts.insert(image.config().digest.clone(), vec![registry.reference("stranger")]);
    yard.events.lock().unwrap().clear();
    let second = registry.reference("second");
    client().push(&second, &source, &yard.progress).await.unwrap();
    assert_eq!(yard.statuses(&image.layer(0).digest), ["Waiting", "Mounted from first"]);
    assert_eq!(yard.statuses(&image.config().digest), ["Waiting", "Pushing", "Pushed"]);
    assert_pulls(&client(), &second, &image).await;
}

#[tokio::test]
async fn a_password_is_asked_for_and_checked() {
    let registry = Registry::with_users();
    let with = |password: &str| {
        let c = Credentials::Password { username: USER.to_owned(), password: Secret::new(password) };
        client().with_credentials(Arc::new(StaticCredentials::new().with(&registry.host(), c)))
    };
    let image = Image::new(1, &linux(), &[100_000, 10]);
    let (yard, reference) = (Yard::new(), registry.reference("private/app"));
    let source = source(&yard, &image);

    let e = client().push(&reference, &source, &yard.progress).await.unwrap_err();
    assert_eq!(e.kind(), ErrorKind::Unauthorized);
    assert!(e.to_string().ends_with("no basic auth credentials"), "{e}");
    let e = with("wrong").push(&reference, &source, &yard.progress).await.unwrap_err();
    assert_eq!(e.kind(), ErrorKind::Unauthorized);
    assert!(!e.to_string().contains("wrong"), "{e}");
    with(PASSWORD).push(&reference, &source, &yard.progress).await.unwrap();
    assert_pulls(&with(PASSWORD), &reference, &image).await;
    assert_eq!(client().resolve(&reference).await.unwrap_err().kind(), ErrorKind::Unauthorized);
    with(PASSWORD).check_credentials(&registry.host()).await.unwrap();
    assert!(with("wrong").check_credentials(&registry.host()).await.is_err());
}

#[tokio::test]
async fn certificates_are_verified_as_configured() {
    let registry = Registry::with_tls();
    let image = Image::new(1, &linux(), &[10_000]);
    let (yard, reference) = (Yard::new(), registry.reference("tls/app"));
    let with = |settings: &str| {
        let toml = format!("[registry.\"{}\"]\n{settings}", registry.host());
        RegistryClient::new(RegistryConfig::from_toml(&toml).unwrap(), options())
    };
    // Without any settings, a loopback registry's certificate is not verified, as in Docker.
    client().push(&reference, &source(&yard, &image), &yard.progress).await.unwrap();
    assert_pulls(&with(&format!("ca = [{:?}]", registry.certificate())), &reference, &image).await;
    assert_pulls(&with("insecure = true"), &reference, &image).await;
    let e = with("http = false").resolve(&reference).await.unwrap_err();
    assert!(matches!(e, RegistryError::Tls { .. }), "{e}");
    let e = with("ca = [\"/nonexistent/ca.pem\"]").resolve(&reference).await.unwrap_err();
    assert!(e.to_string().contains("/nonexistent/ca.pem"), "{e}");
    let e = with("http = true").resolve(&reference).await.unwrap_err();
    assert_eq!(e.kind(), ErrorKind::Unavailable, "{e}");
}

#[tokio::test]
async fn a_client_certificate_is_shown_to_the_registry_that_it_is_for() {
    let registry = Registry::with_client_certificates();
    let (certificate, key) = registry.client_certificate();
    let image = Image::new(1, &linux(), &[10_000]);
    let (yard, reference) = (Yard::new(), registry.reference("tls/app"));
    let with = |settings: &str| {
        let ca = format!("ca = [{:?}]", registry.certificate());
        let toml = format!("[registry.\"{}\"]\n{ca}\n{settings}", registry.host());
        RegistryClient::new(RegistryConfig::from_toml(&toml).unwrap(), options())
    };
    let e = with("").resolve(&reference).await.unwrap_err();
    assert_eq!(e.kind(), ErrorKind::Unavailable, "{e}");
    let client = with(&format!("keypair = [{{key = {key:?}, cert = {certificate:?}}}]"));
    client.push(&reference, &source(&yard, &image), &yard.progress).await.unwrap();
    assert_pulls(&client, &reference, &image).await;
    // The same, found in a directory as Docker has it.
    let dir = tempfile::tempdir().unwrap();
    std::fs::copy(&certificate, dir.path().join("client.cert")).unwrap();
    std::fs::copy(&key, dir.path().join("client.key")).unwrap();
    assert_pulls(&with(&format!("tlsconfigdir = [{:?}]", dir.path())), &reference, &image).await;
}

#[tokio::test]
async fn what_is_not_there_is_told_in_dockers_words() {
    let registry = Registry::start();
    let e = client().resolve(&registry.reference("nothing:1")).await.unwrap_err();
    assert_eq!(
        e.to_string(),
        format!("manifest for {}/nothing:1 not found: manifest unknown: manifest unknown", registry.host())
    );
}

#[tokio::test]
async fn a_push_without_its_layers_names_the_blob() {
    let registry = Registry::start();
    let image = Image::new(1, &linux(), &[10]);
    let yard = Yard::new();
    let source = source(&yard, &image);
    yard.target.content.remove(&image.layer(0).digest).unwrap();
    let e = client().push(&registry.reference("x"), &source, &yard.progress).await.unwrap_err();
    let source = std::error::Error::source(&e).map(ToString::to_string).unwrap_or_default();
    assert!(source.contains(image.layer(0).digest.as_str()), "{e}: {source}");
    assert!(client().resolve(&registry.reference("x")).await.is_err(), "the tag must not appear");
}

#[tokio::test]
async fn the_tag_is_given_to_the_root_alone_and_last() {
    let arm = Platform::new("linux", "arm64");
    let image =
        Image::index(&[(&arm, &Image::new(1, &arm, &[10])), (&linux(), &Image::new(2, &linux(), &[20]))]);
    let fake = Fake::start(|seen| match seen.method.as_str() {
        "PUT" => status(201).body(axum::body::Body::empty()).unwrap().into(),
        // It has all blobs.
        _ => status(200).body(axum::body::Body::empty()).unwrap().into(),
    })
    .await;
    let yard = Yard::new();
    let (client, source, reference) =
        (client(), source(&yard, &image), fake.reference().with_tag("v1").unwrap());
    let progress = yard.progress.clone();
    // Spawned, because the engine will: the future must be Send.
    let pushed = tokio::spawn(async move { client.push(&reference, &source, &progress).await });
    pushed.await.unwrap().unwrap();
    let log = fake.log.lock().unwrap();
    let puts: Vec<&str> =
        log.iter().filter(|s| s.method == "PUT").filter_map(|s| s.path.rsplit('/').next()).collect();
    assert_eq!(puts.len(), 3);
    assert!(
        puts[..2].iter().all(|p| p.starts_with("sha256:") && *p != image.root().digest.as_str()),
        "{puts:?}"
    );
    assert_eq!(puts[2], "v1");
}

#[tokio::test]
async fn uploads_are_begun_anew_after_a_failure() {
    let image = Image::new(1, &linux(), &[200_000]);
    let (yard, layer) = (Yard::new(), image.layer(0).digest.clone());
    let fake = Fake::start(move |seen| match seen.method.as_str() {
        "HEAD" => error(404, "BLOB_UNKNOWN", "").into(),
        "POST" => {
            let location = format!("/v2/team/app/blobs/uploads/{}?_state=a%2Bb", seen.nth);
            status(202).header("location", location).body(axum::body::Body::empty()).unwrap().into()
        }
        // The first upload of the layer fails after it was taken.
        "PUT" if seen.body.len() == 200_000 && seen.path.ends_with("/0") => {
            error(503, "UNAVAILABLE", "").into()
        }
        "PUT"
            if seen.path.contains("/uploads/")
                && !seen.query.starts_with("_state=a%2Bb&digest=sha256%3A") =>
        {
            error(400, "DIGEST_INVALID", &seen.query).into()
        }
        _ => status(201).body(axum::body::Body::empty()).unwrap().into(),
    })
    .await;
    // One at a time, so that the layer comes first.
    let one = ClientOptions { concurrent_uploads: 1, ..options() };
    let client = RegistryClient::new(RegistryConfig::default(), one);
    client.push(&fake.reference(), &source(&yard, &image), &yard.progress).await.unwrap();
    let events = yard.events.lock().unwrap();
    let of_layer: Vec<_> = events.iter().filter(|e| e.digest == layer).map(|e| e.status.clone()).collect();
    assert!(of_layer.iter().any(|s| matches!(s, TransferStatus::Retrying { .. })), "{of_layer:?}");
    assert_eq!(of_layer.last(), Some(&TransferStatus::Uploaded));
    let log = fake.log.lock().unwrap();
    let whole = log.iter().filter(|s| s.method == "PUT" && s.body.len() == 200_000).count();
    assert_eq!(whole, 2);
    assert!(log.last().unwrap().path.ends_with("/manifests/latest"), "the tag comes last");
}
