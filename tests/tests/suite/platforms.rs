//! Builds for several platforms, and for one that is not this machine's: indexes, arguments, emulated steps, caches.

use std::{fs, path::Path, sync::Arc};

use lapstrake_builder_engine::{BuildRequest, CacheSource, CacheTarget, Destination, Input, Output};
use lapstrake_builder_progress::Event;
use lapstrake_integration_cli::{Emulator, Registry, busybox_rootfs, foreign_busybox_rootfs};
use lapstrake_layerstore_oci::{Digest, ImageConfig, Platform, Reference};
use lapstrake_layerstore_registry::{ClientOptions, ProgressFn, Pushed, RegistryClient, RegistryConfig};
use lapstrake_layerstore_store::ImageRecord;
use lapstrake_layerstore_transfer::{push, stored_index, stored_manifest};
use lapstrake_tests::{Built, Context, Workbench};
use tokio_util::sync::CancellationToken;

fn platform(text: &str) -> Platform {
    Platform::parse(text).unwrap().normalized()
}

/// A request for platforms.
async fn request(bench: &Workbench, context: Context, name: &str, platforms: &[&str]) -> BuildRequest {
    let mut request = bench.request(context, name).await.unwrap();
    let Input::Dockerfile { options, .. } = &mut request.input else { panic!("a Dockerfile was given") };
    options.platforms = platforms.iter().map(|text| platform(text)).collect();
    request
}

async fn build(bench: &Workbench, context: Context, name: &str, platforms: &[&str]) -> Built {
    let request = request(bench, context, name, platforms).await;
    bench.run(request).await.1.unwrap()
}

/// A build into a directory.
async fn build_to(bench: &Workbench, context: Context, platforms: &[&str], to: &Path) -> Built {
    let mut request = request(bench, context, "unused", platforms).await;
    request.outputs = vec![Output::local(Destination::Path(to.to_owned()))];
    bench.run(request).await.1.unwrap()
}

fn read(dir: &Path, path: &str) -> String {
    fs::read_to_string(dir.join(path)).unwrap_or_else(|error| panic!("read {path}: {error}"))
}

/// The image `multi`: busybox for this machine and for arm64.
async fn multi(bench: &Workbench) {
    let context = Context::new("FROM scratch\nARG TARGETARCH\nADD root-$TARGETARCH.tar /\nENV PATH=/bin\n")
        .binary("root-amd64.tar", 0o644, &busybox_rootfs())
        .binary("root-arm64.tar", 0o644, &foreign_busybox_rootfs("arm64"));
    build(bench, context, "multi", &["linux/amd64", "linux/arm64"]).await;
}

const BOTH: [&str; 2] = ["linux/amd64", "linux/arm64"];

/// The configs of an index' images, by platform.
fn configs(bench: &Workbench, built: &Built) -> Vec<(String, ImageConfig)> {
    let index = stored_index(&bench.stores, built.exported.manifest.as_ref().unwrap()).unwrap().unwrap();
    let config = |manifest: &lapstrake_layerstore_transfer::ImageManifest| {
        let bytes = bench.stores.content.read_small(&manifest.manifest.config.digest, 1 << 20).unwrap();
        let platform = manifest.descriptor.platform.clone().unwrap();
        (platform.to_string(), ImageConfig::from_json(&bytes).unwrap())
    };
    index.manifests.iter().map(config).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn emulated_steps_run_and_every_platform_is_in_the_index() {
    let _emulator = Emulator::register("aarch64");
    let bench = Workbench::new();
    multi(&bench).await;
    let context = || {
        Context::new(
            "FROM multi\nARG TARGETPLATFORM TARGETOS TARGETARCH TARGETVARIANT BUILDPLATFORM BUILDARCH\n\
             RUN uname -m > /machine\n\
             RUN echo \"$TARGETPLATFORM/$TARGETOS/$TARGETARCH/$TARGETVARIANT on $BUILDPLATFORM $BUILDARCH\" > /said\n\
             ENV WHAT=$TARGETARCH\n",
        )
    };
    let built = build(&bench, context(), "app", &BOTH).await;
    assert!(built.exported.manifest.as_ref().unwrap().media_type.is_index());
    assert_eq!(built.exported.digest(), built.exported.manifest.as_ref().map(|manifest| &manifest.digest));
    let configs = configs(&bench, &built);
    assert_eq!(configs.iter().map(|(name, _)| name.as_str()).collect::<Vec<_>>(), BOTH);
    for (name, config) in &configs {
        assert_eq!(config.platform().to_string(), *name);
        assert!(config.config.env.contains(&format!("WHAT={}", config.architecture)));
    }
    assert!(built.ran().iter().any(|name| name.starts_with("[linux/arm64 2/3] RUN")), "{:?}", built.ran());
    assert!(built.ran().iter().any(|name| name.starts_with("[linux/amd64 3/3] RUN")), "{:?}", built.ran());
    // What the name points at is this machine's.
    assert_eq!(bench.config("app").architecture, "amd64");
    assert_eq!(bench.read("app", "machine"), "x86_64\n");

    let dir = tempfile::tempdir().unwrap();
    let again = build_to(&bench, context(), &BOTH, dir.path()).await;
    assert_eq!(again.ran(), Vec::<String>::new());
    assert_eq!(read(dir.path(), "linux_amd64/machine"), "x86_64\n");
    assert_eq!(read(dir.path(), "linux_arm64/machine"), "aarch64\n");
    assert_eq!(read(dir.path(), "linux_arm64/said"), "linux/arm64/linux/arm64/ on linux/amd64 amd64\n");

    // Nothing but the name keeps it, and what was built for arm64 can be built upon, from its blobs.
    let all = lapstrake_builder_cache::PruneRequest { all: true, ..Default::default() };
    bench.engine.cache().prune(&all).unwrap();
    bench.collector.collect().unwrap();
    let other = Context::new("FROM app\nRUN cat /machine /said > /both\n");
    let dir = tempfile::tempdir().unwrap();
    let mut one = request(&bench, other, "unused", &["linux/arm64"]).await;
    one.outputs = vec![Output::local(Destination::Path(dir.path().to_owned()))];
    bench.run(one).await.1.unwrap();
    assert!(read(dir.path(), "both").starts_with("aarch64\nlinux/arm64"));
}

#[tokio::test(flavor = "multi_thread")]
async fn all_platforms_are_built_at_once_and_what_they_share_once() {
    let bench = Workbench::new();
    multi(&bench).await;
    // Each waits for the other. (Both run on this machine: no emulator is needed to build for another one.)
    let wait = "touch /c/$TARGETARCH; n=0; until [ -e /c/amd64 ] && [ -e /c/arm64 ]; do n=$((n+1)); [ $n -lt 600 ] || exit 9; sleep 0.05; done";
    let context = Context::new(&format!(
        "FROM --platform=$BUILDPLATFORM multi AS tools\nRUN cat /proc/sys/kernel/random/uuid > /tools\n\
         FROM --platform=$BUILDPLATFORM multi AS build\nARG TARGETARCH\nCOPY --from=tools /tools /tools\n\
         RUN --mount=type=cache,id=meet,target=/c {wait}; echo for $TARGETARCH > /out\n\
         FROM multi\nCOPY --from=build /out /tools /\n",
    ));
    let dir = tempfile::tempdir().unwrap();
    let built = build_to(&bench, context, &BOTH, dir.path()).await;
    assert_eq!(read(dir.path(), "linux_arm64/out"), "for arm64\n");
    assert_eq!(read(dir.path(), "linux_amd64/out"), "for amd64\n");
    assert_eq!(read(dir.path(), "linux_arm64/tools"), read(dir.path(), "linux_amd64/tools"));
    let ran = built.ran();
    assert_eq!(ran.iter().filter(|name| name.contains("random/uuid")).count(), 1, "{ran:?}");
    assert!(ran.iter().any(|name| name.starts_with("[linux/amd64->arm64 build 3/3] RUN")), "{ran:?}");
    // Files are another machine's.
    assert_ne!(
        fs::read(dir.path().join("linux_arm64/bin/busybox")).unwrap(),
        fs::read(dir.path().join("linux_amd64/bin/busybox")).unwrap()
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn one_platform_is_no_index_unless_that_is_asked_for() {
    let bench = Workbench::new();
    let context = || Context::new("FROM busybox\nENV A=1\n");
    let built = build(&bench, context(), "app", &["linux/amd64"]).await;
    assert_eq!(built.exported.manifest, None);
    assert_eq!(bench.stores.images.find("app").unwrap().index_meant("app"), None);

    let mut request = request(&bench, context(), "app", &["linux/amd64"]).await;
    let Input::Dockerfile { options, .. } = &mut request.input else { panic!("a Dockerfile was given") };
    options.multi_platform = Some(true);
    let built = bench.run(request).await.1.unwrap();
    assert_eq!(configs(&bench, &built).len(), 1);
    assert_eq!(bench.stores.images.find("app").unwrap().index_meant("app"), built.exported.manifest.as_ref());
}

#[tokio::test(flavor = "multi_thread")]
async fn an_archive_of_one_image_is_refused_before_anything_is_built() {
    let bench = Workbench::new();
    let context = Context::new("FROM --platform=$BUILDPLATFORM busybox\nARG TARGETARCH\nRUN touch /ran\n");
    let mut request = request(&bench, context, "app", &BOTH).await;
    request.outputs = vec![Output::docker(Vec::new(), Destination::Path("/nowhere/app.tar".into()))];
    let (events, result) = bench.run(request).await;
    let error = result.unwrap_err().to_string();
    assert_eq!(error, "docker exporter does not currently support exporting manifest lists");
    let has_run = |event: &Event| matches!(event, Event::Vertex(vertex) if vertex.name.contains("RUN"));
    assert!(!events.iter().any(has_run));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_platform_that_nothing_runs_is_an_error_that_says_what_to_install() {
    let bench = Workbench::new();
    // A program for a processor that nobody made.
    let mut program = b"\x7fELF\x02\x01\x01".to_vec();
    program.resize(16, 0);
    program.extend([2, 0, 0x11, 0x7a]);
    program.resize(64, 0);
    let context = Context::new("FROM scratch\nCOPY sh /bin/sh\nRUN make\n").binary("sh", 0o755, &program);
    let (_, result) = bench.run(request(&bench, context, "app", &["linux/imaginary"]).await).await;
    let error = result.unwrap_err().to_string();
    for part in [
        "\"/bin/sh -c make\"",
        "exec format error",
        "machine 31249",
        "apt-get install qemu-user-static binfmt-support",
        "tonistiigi/binfmt",
    ] {
        assert!(error.contains(part), "{part}: {error}");
    }
    // A native program that comes upon a foreign one tells it in its own words; the step's log says what they mean.
    let context = Context::new("FROM --platform=linux/imaginary busybox\nRUN true\n");
    let (_, result) = bench.run(request(&bench, context, "app", &[]).await).await;
    // (There is no such image, of course.)
    result.unwrap_err();
    let context = Context::new(
        "FROM scratch\nADD root.tar /\nCOPY sh /strange\nRUN [\"/bin/sh\", \"-c\", \"/strange\"]\n",
    )
    .binary("root.tar", 0o644, &busybox_rootfs())
    .binary("sh", 0o755, &program);
    let (events, result) = bench.run(request(&bench, context, "app", &["linux/imaginary"]).await).await;
    result.unwrap_err();
    let said: String = events
        .iter()
        .filter_map(|event| match event {
            Event::Log(log) => Some(String::from_utf8_lossy(&log.data).into_owned()),
            _ => None,
        })
        .collect();
    assert!(
        said.contains("exec format error means that this machine does not run programs for linux/imaginary"),
        "{said}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn programs_of_the_32_bit_processor_run_as_they_are() {
    let bench = Workbench::new();
    assert!(
        bench.engine.platforms().await.contains(&platform("linux/386")),
        "the kernel was made without it"
    );
    let context =
        Context::new("FROM scratch\nADD root.tar /\nRUN uname -m > /machine && cp /proc/self/exe /self\n")
            .binary("root.tar", 0o644, &foreign_busybox_rootfs("i386"));
    build(&bench, context, "app", &["linux/386"]).await;
    assert_eq!(bench.config("app").architecture, "386");
    assert_eq!(fs::read(bench.open("app").path().join("self")).unwrap()[4], 1, "a 32-bit program ran");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_platforms_that_run_here_follow_what_is_registered() {
    let bench = Workbench::new();
    let all = bench.engine.platforms().await;
    assert_eq!(all[0], Platform::host());
    let _emulators = ["s390x", "arm"].map(Emulator::register);
    let bench = Workbench::new();
    let all = bench.engine.platforms().await;
    for expected in ["linux/s390x", "linux/arm/v7", "linux/arm/v6"] {
        assert!(all.contains(&platform(expected)), "{expected}: {all:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_image_that_is_only_there_for_another_platform_is_taken_where_that_runs() {
    let registry = Registry::start();
    let maker = Workbench::new();
    let name = registry.image("only/arm64:1");
    let context = Context::new("FROM scratch\nADD root.tar /\n").binary(
        "root.tar",
        0o644,
        &foreign_busybox_rootfs("arm64"),
    );
    build(&maker, context, &name, &["linux/arm64"]).await;
    let record = maker.stores.images.find(&name).unwrap();
    send(&maker, &record, &name).await;

    let context = || Context::new(&format!("FROM {name}\nRUN uname -m > /machine\n"));
    {
        let _emulator = Emulator::register("aarch64");
        let bench = Workbench::new();
        let built = build(&bench, context(), "app", &[]).await;
        assert_eq!(bench.read("app", "machine"), "aarch64\n");
        assert_eq!(bench.config("app").architecture, "arm64");
        assert_eq!(built.warnings(), "", "it is for a platform that runs here");
        // Whoever asks for this machine's platform is told that it is none of that.
        let built = build(&bench, context(), "app", &["linux/amd64"]).await;
        assert!(built.warnings().contains("InvalidBaseImagePlatform"), "{}", built.warnings());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_base_for_an_older_variant_of_the_processor_serves() {
    let bench = Workbench::new();
    let base =
        Context::new("FROM scratch\nARG TARGETARCH TARGETVARIANT\nCOPY f /$TARGETARCH-$TARGETVARIANT\n")
            .file("f", "");
    build(&bench, base, "base", &["linux/amd64", "linux/arm/v5", "linux/arm/v6", "linux/arm64"]).await;
    for (wanted, got) in [
        ("linux/arm/v7", "arm-v6"),
        ("linux/arm/v6", "arm-v6"),
        ("linux/arm/v5", "arm-v5"),
        ("linux/arm64/v8", "arm64-"),
        ("linux/amd64/v2", "amd64-"),
    ] {
        let dir = tempfile::tempdir().unwrap();
        let context = Context::new("FROM base\nCOPY f /added\n").file("f", "");
        let mut one = request(&bench, context, "unused", &[wanted]).await;
        one.outputs = vec![Output::local(Destination::Path(dir.path().to_owned()))];
        bench.run(one).await.1.unwrap();
        assert!(
            dir.path().join(got).exists(),
            "{wanted}: {:?}",
            fs::read_dir(dir.path()).unwrap().collect::<Vec<_>>()
        );
    }
}

/// Two platforms, each with a step that is told apart from another run; both run on this machine.
fn cached() -> Context {
    Context::new(
        "FROM --platform=$BUILDPLATFORM multi AS make\nARG TARGETARCH\nRUN echo $TARGETARCH $(cat /proc/sys/kernel/random/uuid) > /out\n\
         FROM multi\nCOPY --from=make /out /out\nCOPY src /src\n",
    )
    .file("src", "source")
}

/// Pushes an image.
async fn send(bench: &Workbench, record: &ImageRecord, name: &str) -> Pushed {
    let client = RegistryClient::new(RegistryConfig::default(), ClientOptions::default());
    let (reference, progress): (_, ProgressFn) = (Reference::parse(name).unwrap(), Arc::new(|_| ()));
    push(&bench.stores, &client, record, &reference, None, &progress, &CancellationToken::new())
        .await
        .unwrap()
}

/// The layers of each platform's image.
fn layers(bench: &Workbench, built: &Built) -> [Vec<Digest>; 2] {
    let index = built.exported.manifest.clone().unwrap();
    BOTH.map(|name| {
        let found = stored_manifest(&bench.stores, &index, &platform(name)).unwrap().unwrap();
        found.manifest.layers.iter().map(|layer| layer.digest.clone()).collect()
    })
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cache_has_every_platforms_steps() {
    let registry = Registry::start();
    let bench = Workbench::new();
    multi(&bench).await;
    let dir = tempfile::tempdir().unwrap();
    let at = dir.path().join("cache");
    let remote = registry.image("cache:1");
    for (to, from) in [
        (format!("type=local,dest={},mode=max", at.display()), format!("type=local,src={}", at.display())),
        (format!("type=registry,ref={remote},mode=max"), remote.clone()),
    ] {
        let mut first = request(&bench, cached(), "app", &BOTH).await;
        first.cache_to = vec![CacheTarget::parse(&to).unwrap()];
        let first = bench.run(first).await.1.unwrap();
        assert_eq!(first.ran().iter().filter(|name| name.contains("RUN")).count(), 2, "{:?}", first.ran());
        let before = layers(&bench, &first);
        bench.forget("app");

        let mut again = request(&bench, cached(), "app", &BOTH).await;
        again.cache_from = vec![CacheSource::parse(&from).unwrap()];
        let again = bench.run(again).await.1.unwrap();
        assert_eq!(again.ran(), Vec::<String>::new(), "{from}: {}", again.warnings());
        assert_eq!(layers(&bench, &again), before, "{from}");
        bench.forget("app");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_image_of_an_index_carries_its_own_cache() {
    let registry = Registry::start();
    let bench = Workbench::new();
    multi(&bench).await;
    let name = registry.image("app:1");
    let mut first = request(&bench, cached(), &name, &BOTH).await;
    first.inline_cache = true;
    let first = bench.run(first).await.1.unwrap();
    for (platform, config) in configs(&bench, &first) {
        assert!(config.extra.contains_key("moby.buildkit.cache.v0"), "{platform}");
    }
    let record = bench.stores.images.find(&name).unwrap();
    let pushed = send(&bench, &record, &name).await;
    assert_eq!(Some(&pushed.descriptor.digest), first.exported.digest(), "the index was pushed");
    let before = layers(&bench, &first);
    bench.forget(&name);

    let mut again = request(&bench, cached(), "again", &BOTH).await;
    again.cache_from = vec![CacheSource::parse(&name).unwrap()];
    let again = bench.run(again).await.1.unwrap();
    assert!(again.ran().is_empty(), "{:?} {}", again.ran(), again.warnings());
    assert_eq!(layers(&bench, &again), before);

    // From the image in the store, too, where every platform's is below one name.
    let mut third = request(&bench, cached(), "third", &BOTH).await;
    third.inline_cache = true;
    let third = bench.run(third).await.1.unwrap();
    let before = layers(&bench, &third);
    let all = lapstrake_builder_cache::PruneRequest { all: true, ..Default::default() };
    bench.stores.images.delete_image(&bench.stores.images.find("again").unwrap().id).unwrap();
    bench.engine.cache().prune(&all).unwrap();
    bench.collector.collect().unwrap();
    let mut fourth = request(&bench, cached(), "fourth", &BOTH).await;
    fourth.cache_from = vec![CacheSource::parse("third").unwrap()];
    let fourth = bench.run(fourth).await.1.unwrap();
    assert!(fourth.ran().is_empty(), "{:?} {}", fourth.ran(), fourth.warnings());
    assert_eq!(layers(&bench, &fourth), before);
}
