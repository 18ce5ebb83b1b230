//! Images, from Debian's docker-registry and from the local store.

use std::sync::Arc;

use lapstrake_builder_dockerfile::{ImageOrigin, ImageQuery};
use lapstrake_builder_llb::{ResolveMode, pb};
use lapstrake_builder_source::{ErrorKind, SourceError, SourceKind, SourceLimits};
use lapstrake_layerstore_conformance::docker_registry::{PASSWORD, Registry, USER};
use lapstrake_layerstore_oci::{ChainId, DiffId, Digest, Platform, Reference};
use lapstrake_layerstore_registry::{Credentials, Secret, StaticCredentials};
use lapstrake_layerstore_store::{ImageName, NewImage, Tree};

use crate::common::{Bench, image::Image, op};
use crate::session;

fn app() -> Image {
    Image::new(&Platform::host(), &[("one", "1"), ("two", "2"), ("three", "3")])
}

fn query(name: &str, mode: ResolveMode) -> ImageQuery {
    ImageQuery {
        origin: ImageOrigin::registry(mode),
        reference: Reference::parse(name).unwrap().with_default_tag(),
        platform: Platform::host(),
    }
}

fn chain_key(image: &Image, layers: usize) -> Digest {
    let diff_ids: Vec<DiffId> = image.diff_ids[..layers].iter().cloned().map(DiffId::from).collect();
    Digest::sha256_of(format!("buildkit.source.v0:{}", ChainId::of(&diff_ids).unwrap()))
}

#[tokio::test]
async fn a_pull_gives_all_layers_keyed_by_their_chain() {
    let (registry, bench, image) = (Registry::start(), Bench::new(), app());
    image.push(&registry, "team/app", "1").await;
    let name = format!("docker-image://{}/team/app:1", registry.host());
    let cx = bench.context();
    let source = bench.open(&name, &[]).unwrap();
    assert_eq!(source.kind(), SourceKind::Image);
    assert_eq!(source.description(), format!("pulled from {}/team/app:1", registry.host()));
    assert_eq!(source.pin(&cx).await.unwrap(), chain_key(&image, 3));
    let tree = source.fetch(&cx).await.unwrap();
    let file = |name: &str, text: &str| (name.to_owned(), format!("f:{text}"));
    assert_eq!(bench.list(&tree), [file("one", "1"), file("three", "3"), file("two", "2")]);
    let bottom = Digest::sha256_of(&image.layers[0]);
    let size = image.layers[0].len() as u64;
    assert_eq!(bench.recorder.last(bottom.as_str()), Some((size, size, true)));
    assert!(bench.recorder.last(&format!("extracting {bottom}")).unwrap().2);
    assert!(bench.recorder.parts()[0].starts_with("resolve 127.0.0.1"));
}

#[tokio::test]
async fn what_was_resolved_is_fetched_by_digest_without_asking_for_documents_and_again_without_any_network() {
    let (registry, bench, image) = (Registry::start(), Bench::new(), app());
    image.push(&registry, "team/app", "1").await;
    let cx = bench.context();
    let name = format!("{}/team/app:1", registry.host());
    let fact = bench.sources.resolve_image(&cx, &query(&name, ResolveMode::Default)).await.unwrap();
    assert_eq!(fact.digest, Some(image.digest()));
    assert_eq!(&*fact.config, image.config.as_slice());
    assert_eq!(fact.image_id, None);
    // Held, though nothing names them.
    bench.collect();
    let pinned = format!("docker-image://{name}@{}", image.digest());
    let (_, tree) = bench.get(&cx, &pinned, &[]).await.unwrap();
    drop(registry);
    let (key, again) = bench.get(&cx, &pinned, &[("image.resolvemode", "pull")]).await.unwrap();
    assert_eq!((key, &again), (chain_key(&image, 3), &tree));
    let error = bench.get(&cx, &format!("docker-image://{name}"), &[]).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unavailable, "{error}");
}

#[tokio::test]
async fn a_digest_that_is_here_is_served_only_by_names_that_it_is_known_by() {
    let (registry, bench, image) = (Registry::start(), Bench::new(), app());
    image.push(&registry, "team/app", "1").await;
    let (cx, host) = (bench.context(), registry.host().to_owned());
    let by = |repository: &str| format!("docker-image://{host}/{repository}@{}", image.digest());
    let (_, tree) = bench.get(&cx, &by("team/app"), &[]).await.unwrap();
    // The registry is asked, which does not have it there.
    let error = bench.get(&cx, &by("team/other"), &[]).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NotFound, "{error}");
    // An image of the name has it.
    let named = Reference::parse(&format!("{host}/team/named:2")).unwrap();
    bench
        .stores
        .images
        .put(NewImage {
            config: image.config.clone(),
            top: tree.snapshot().cloned(),
            diff_ids: image.diff_ids.iter().cloned().map(DiffId::from).collect(),
            parent: None,
            manifest: Some(image.digest()),
            names: vec![ImageName { reference: named, target: None }],
        })
        .unwrap();
    bench.sources.forget_images();
    drop(registry);
    assert_eq!(bench.get(&cx, &by("team/named"), &[]).await.unwrap().1, tree);
    for repository in ["team/app", "team/other"] {
        let error = bench.get(&cx, &by(repository), &[]).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unavailable, "{error}");
    }
}

#[tokio::test]
async fn documents_that_no_build_waits_for_go_when_they_are_forgotten() {
    let (registry, bench, image) = (Registry::start(), Bench::new(), app());
    image.push(&registry, "team/app", "1").await;
    let name = format!("{}/team/app:1", registry.host());
    bench.sources.resolve_image(&bench.context(), &query(&name, ResolveMode::Default)).await.unwrap();
    let is_there = || bench.stores.content.info(&image.digest()).unwrap().is_some();
    bench.collect();
    assert!(is_there());
    bench.sources.forget_images();
    bench.collect();
    assert!(!is_there());
}

#[tokio::test]
async fn a_limit_takes_the_lower_layers() {
    let (registry, bench, image) = (Registry::start(), Bench::new(), app());
    image.push(&registry, "team/app", "1").await;
    let name = format!("docker-image://{}/team/app:1", registry.host());
    let cx = bench.context();
    let (key, tree) = bench.get(&cx, &name, &[("image.layerlimit", "2")]).await.unwrap();
    assert_eq!(key, chain_key(&image, 2));
    assert_eq!(bench.names(&tree), ["one", "two"]);
    let error = bench.get(&cx, &name, &[("image.layerlimit", "4")]).await.unwrap_err();
    assert!(error.to_string().contains("layer limit 4"), "{error}");
}

#[tokio::test]
async fn an_image_without_layers_is_the_empty_tree() {
    let (registry, bench) = (Registry::start(), Bench::new());
    let image = Image::new(&Platform::host(), &[]);
    image.push(&registry, "void", "latest").await;
    let (_, tree) =
        bench.get(&bench.context(), &format!("docker-image://{}/void", registry.host()), &[]).await.unwrap();
    assert_eq!(tree, Tree::empty());
}

#[tokio::test]
async fn a_checksum_must_be_the_images() {
    let (registry, bench, image) = (Registry::start(), Bench::new(), app());
    image.push(&registry, "team/app", "1").await;
    let name = format!("docker-image://{}/team/app:1", registry.host());
    let cx = bench.context();
    bench.get(&cx, &name, &[("image.checksum", image.digest().as_str())]).await.unwrap();
    let other = Digest::sha256_of("other");
    let error = bench.get(&cx, &name, &[("image.checksum", other.as_str())]).await.unwrap_err();
    assert!(matches!(error, SourceError::Checksum { .. }), "{error}");
    assert_eq!(error.kind(), ErrorKind::Corrupt);
}

#[tokio::test]
async fn a_registry_with_passwords_wants_the_right_one() {
    let (registry, bench, image) = (Registry::with_users(), Bench::new(), app());
    image.push(&registry, "team/app", "1").await;
    let name = format!("docker-image://{}/team/app:1", registry.host());
    let error = bench.get(&bench.context(), &name, &[]).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unauthorized, "{error}");
    assert!(error.to_string().contains("no basic auth credentials"), "{error}");
    let login = Credentials::Password { username: USER.to_owned(), password: Secret::new(PASSWORD) };
    let mut cx = bench.context();
    cx.credentials = vec![
        Arc::new(StaticCredentials::new()),
        Arc::new(StaticCredentials::new().with(&registry.host(), login)),
    ];
    bench.get(&cx, &name, &[]).await.unwrap();
}

#[tokio::test]
async fn a_clients_login_comes_first_and_its_refusal_is_not_taken_for_having_none() {
    let (registry, image) = (Registry::with_users(), app());
    image.push(&registry, "team/app", "1").await;
    let name = format!("docker-image://{}/team/app:1", registry.host());
    let login = |name: &str| {
        let login = (name.to_owned(), PASSWORD.to_owned());
        session::Client { credentials: [(registry.host(), login)].into(), ..session::Client::default() }
    };
    let connected = login(USER).connect_as(session::info("s1")).await;
    let bench = Bench::with(SourceLimits::default(), connected.sessions.clone());
    let mut cx = bench.context_of("s1");
    let other = Credentials::Password { username: "bob".to_owned(), password: Secret::new("wrong") };
    cx.credentials = vec![Arc::new(StaticCredentials::new().with(&registry.host(), other))];
    bench.get(&cx, &name, &[]).await.unwrap();

    let connected = login("mallory").connect_as(session::info("s1")).await;
    let bench = Bench::with(SourceLimits::default(), connected.sessions.clone());
    let error = bench.get(&bench.context_of("s1"), &name, &[]).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unauthorized, "{error}");
}

#[tokio::test]
async fn an_image_that_is_not_there_is_not_found_by_name() {
    let (registry, bench) = (Registry::start(), Bench::new());
    let name = format!("{}/nobody/nothing:9", registry.host());
    let error =
        bench.sources.resolve_image(&bench.context(), &query(&name, ResolveMode::Default)).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NotFound, "{error}");
    assert!(error.to_string().contains("nobody/nothing:9"), "{error}");
}

/// Puts an image into the local store, as loading it would.
async fn store(bench: &Bench, registry: &Registry, platform: &Platform, name: &str) -> (Image, Tree) {
    let image = Image::new(platform, &[("local", "yes")]);
    image.push(registry, "source", "1").await;
    let mut wanted = op(&format!("docker-image://{}/source:1", registry.host()), &[]);
    wanted.attrs.clear();
    let own = pb::Platform {
        os: platform.os.clone(),
        architecture: platform.architecture.clone(),
        ..pb::Platform::default()
    };
    let source = bench.sources.open(&wanted, Some(&own)).unwrap();
    let tree = source.fetch(&bench.context()).await.unwrap();
    let reference = Reference::parse(name).unwrap().with_default_tag();
    bench
        .stores
        .images
        .put(NewImage {
            config: image.config.clone(),
            top: tree.snapshot().cloned(),
            diff_ids: image.diff_ids.iter().cloned().map(DiffId::from).collect(),
            parent: None,
            manifest: None,
            names: vec![ImageName { reference, target: None }],
        })
        .unwrap();
    (image, tree)
}

#[tokio::test]
async fn a_local_image_is_used_without_asking_unless_a_pull_is_forced() {
    let (registry, bench) = (Registry::start(), Bench::new());
    let name = format!("{}/mine:1", registry.host());
    let (image, tree) = store(&bench, &registry, &Platform::host(), &name).await;
    drop(registry);
    let cx = bench.context();
    for mode in [ResolveMode::Default, ResolveMode::PreferLocal] {
        let fact = bench.sources.resolve_image(&cx, &query(&name, mode)).await.unwrap();
        assert_eq!(fact.digest, None);
        assert_eq!(fact.image_id.unwrap().digest(), &Digest::sha256_of(&image.config));
        assert_eq!(&*fact.config, image.config.as_slice());
        let attrs = [("image.resolvemode", mode.as_str())];
        let (key, found) = bench.get(&cx, &format!("docker-image://{name}"), &attrs).await.unwrap();
        assert_eq!((key, &found), (chain_key(&image, 1), &tree));
    }
    let error = bench.sources.resolve_image(&cx, &query(&name, ResolveMode::ForcePull)).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unavailable, "{error}");
}

#[tokio::test]
async fn a_local_image_for_another_platform_is_passed_over() {
    let (registry, bench) = (Registry::start(), Bench::new());
    let name = format!("{}/team/app:1", registry.host());
    let image = app();
    image.push(&registry, "team/app", "1").await;
    store(&bench, &registry, &Platform::new("linux", "s390x"), &name).await;
    let fact =
        bench.sources.resolve_image(&bench.context(), &query(&name, ResolveMode::Default)).await.unwrap();
    assert_eq!(fact.digest, Some(image.digest()));
}

#[tokio::test]
async fn an_image_of_windows_own_layers_is_refused() {
    let (registry, bench) = (Registry::start(), Bench::new());
    let windows = Platform::new("windows", "amd64");
    let own = pb::Platform {
        os: "windows".to_owned(),
        architecture: "amd64".to_owned(),
        ..pb::Platform::default()
    };
    for (tag, files, is_own) in [
        ("own", &[("Files/a", "1"), ("Hives/b", "2")][..], true),
        ("plain", &[("Files/a", "1"), ("Hives", "2")], false),
    ] {
        Image::new(&windows, files).push(&registry, "base", tag).await;
        let source = op(&format!("docker-image://{}/base:{tag}", registry.host()), &[]);
        let fetched = bench.sources.open(&source, Some(&own)).unwrap().fetch(&bench.context()).await;
        match fetched {
            Ok(_) => assert!(!is_own, "{tag}"),
            Err(error) => assert!(
                is_own && error.to_string().contains("Windows' own layers is not supported"),
                "{error}"
            ),
        }
    }
}

#[tokio::test]
async fn cancelling_ends_a_wait_for_a_registry() {
    // It accepts connections, and never answers.
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let bench = Bench::new();
    let cx = bench.context();
    let name = format!("docker-image://{}/x", listener.local_addr().unwrap());
    let source = bench.open(&name, &[]).unwrap();
    let pinning = tokio::spawn(async move { source.pin(&cx).await });
    let _connection = listener.accept().await.unwrap();
    bench.cancel.cancel();
    assert_eq!(pinning.await.unwrap().unwrap_err().kind(), ErrorKind::Canceled);
}

#[test]
fn nonsense_is_refused_by_name_before_anything_is_asked() {
    let bench = Bench::new();
    let refused = |identifier: &str, attrs: &[(&str, &str)]| {
        bench.open(identifier, attrs).err().map(|error| (error.kind(), error.to_string())).unwrap()
    };
    for (identifier, attrs, part) in [
        ("docker-image://UPPER", vec![], "UPPER"),
        ("docker-image://x", vec![("image.resolvemode", "sometimes")], "sometimes"),
        ("docker-image://x", vec![("image.layerlimit", "0")], "layerlimit"),
        ("docker-image://x", vec![("image.checksum", "md5:1")], "md5:1"),
        ("oci-layout://x@sha256:1", vec![("oci.store", "s")], "x@sha256:1"),
        ("oci-layout://x:latest", vec![("oci.store", "s")], "no digest"),
        ("nothing", vec![], "nothing"),
    ] {
        let (kind, text) = refused(identifier, &attrs);
        assert_eq!(kind, ErrorKind::Invalid, "{text}");
        assert!(text.contains(part), "{text}");
    }
    assert_eq!(refused("gopher://x", &[]).0, ErrorKind::Unsupported);
}

#[tokio::test]
async fn a_blob_of_a_registry_is_a_file() {
    let (registry, bench, image) = (Registry::start(), Bench::new(), app());
    image.push(&registry, "team/app", "1").await;
    let cx = bench.context();
    let digest = Digest::sha256_of(&image.config);
    let name = format!("docker-image+blob://{}/team/app@{digest}", registry.host());
    let (_, tree) = bench.get(&cx, &name, &[]).await.unwrap();
    let text = String::from_utf8(image.config.clone()).unwrap();
    assert_eq!(bench.list(&tree), [(digest.hex().to_owned(), format!("f:{text}"))]);
    let (_, named) = bench.get(&cx, &name, &[("http.filename", "../config.json")]).await.unwrap();
    assert_eq!(bench.list(&named)[0].0, "config.json");
    // What the store has is no way around the registry: the blob is not of this repository.
    let elsewhere = format!("docker-image+blob://{}/team/other@{digest}", registry.host());
    let error = bench.get(&cx, &elsewhere, &[]).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NotFound, "{error}");
}
