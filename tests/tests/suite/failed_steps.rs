//! Failed steps that are kept, as images.

use lapstrake_builder_dockerfile::Dialect;
use lapstrake_builder_engine::{
    BuildId, EngineError, FAILED_BUILD_LABEL, FAILED_CODE_LABEL, FAILED_IMAGES, FAILED_OOM_LABEL,
    FAILED_REPOSITORY, FAILED_STEP_LABEL, FailedImage, Fault, Input, KeepFailed,
};
use lapstrake_layerstore_oci::Reference;
use lapstrake_tests::{Context, SmallDisk, Workbench};

const BROKEN: &str = "FROM busybox\n\
    ARG VERSION=7\n\
    ENV GREETING=hello\n\
    WORKDIR /work\n\
    RUN echo before > earlier\n\
    USER app\n\
    RUN --mount=type=tmpfs,target=/scratch --mount=type=cache,target=/var/cache/x \
        touch /scratch/t; echo half > /tmp/half; exit 3\n\
    RUN echo never\n";

async fn failure(bench: &Workbench, dockerfile: &str, dialect: Dialect, keep: KeepFailed) -> EngineError {
    let mut request = bench.request(Context::new(dockerfile), "app").await.unwrap();
    let Input::Dockerfile { options, .. } = &mut request.input else { panic!("a Dockerfile") };
    options.dialect = dialect;
    request.keep_failed = keep;
    bench.run(request).await.1.unwrap_err()
}

fn kept(error: &EngineError) -> String {
    match error.keeping() {
        (_, Some(FailedImage::Kept(name))) => name.familiar(),
        other => panic!("it was not kept: {other:?}"),
    }
}

fn names(bench: &Workbench) -> Vec<String> {
    let images = bench.stores.images.list().unwrap();
    images.iter().flat_map(|image| &image.names).map(|name| name.reference.familiar()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_failed_step_wrote_is_an_image_and_what_was_mounted_there_is_not() {
    for dialect in [Dialect::BuildKit, Dialect::Classic] {
        let bench = Workbench::new();
        let mut request = bench.request(Context::new(BROKEN), "app").await.unwrap();
        let Input::Dockerfile { options, .. } = &mut request.input else { panic!("a Dockerfile") };
        options.dialect = dialect;
        request.keep_failed = KeepFailed::Yes;
        request.id = BuildId("the-build".to_owned());
        let error = bench.run(request).await.1.unwrap_err();
        let name = kept(&error);
        let image = bench.stores.images.find(&name).unwrap();
        assert_eq!(name, format!("{FAILED_REPOSITORY}:{}", image.id.short()));

        assert_eq!(bench.read(&name, "work/earlier"), "before\n");
        assert_eq!(bench.read(&name, "tmp/half"), "half\n");
        for mounted in ["scratch", "var/cache/x", "etc/resolv.conf", "etc/hosts"] {
            assert!(!bench.has(&name, mounted), "{mounted}");
        }
        let config = bench.config(&name);
        let container = &config.config;
        assert_eq!((container.user.as_str(), container.working_dir.as_str()), ("app", "/work"));
        assert!(container.env.contains(&"GREETING=hello".to_owned()), "{:?}", container.env);
        assert_eq!((&container.entrypoint, &container.cmd), (&None, &Some(vec!["/bin/sh".to_owned()])));
        assert_eq!(container.labels[FAILED_BUILD_LABEL], "the-build");
        assert_eq!(container.labels[FAILED_CODE_LABEL], "3");
        assert!(container.labels[FAILED_STEP_LABEL].contains("echo half"), "{:?}", container.labels);
        assert!(!container.labels.contains_key(FAILED_OOM_LABEL));

        // It is the same failure, with a line below it.
        let plain = failure(&bench, BROKEN, dialect, KeepFailed::No).await;
        assert_eq!((plain.kind(), plain.failed_process()), (error.kind(), error.failed_process()));
        assert_eq!(plain.fault().map(Fault::excerpt), error.fault().map(Fault::excerpt));
        assert_eq!(error.to_string(), format!("{plain}\nwhat the failed step left is kept as image {name}"));
        // It stays when everything else goes.
        bench.forget("nothing");
        assert_eq!(bench.read(&name, "tmp/half"), "half\n");
        // It is an image like any other: to build from, and to remove.
        let from = format!("FROM {name}\nUSER root\nRUN cat /tmp/half > /copy && rm /tmp/half\n");
        bench.build(Context::new(&from), "next").await.unwrap();
        assert_eq!(bench.read("next", "copy"), "half\n");
        let top = image.top.unwrap();
        bench.forget("next");
        bench.forget(&name);
        assert!(bench.stores.snapshots.stat(&top).is_err(), "its layer is gone with it");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_kept_that_nobody_asked_for_or_that_did_not_fail() {
    let bench = Workbench::new();
    let error = failure(&bench, BROKEN, Dialect::BuildKit, KeepFailed::No).await;
    assert_eq!(error.keeping().1, None);
    // Neither does a build fail that asks, nor is there anything to keep of what is no process.
    let mut request = bench.request(Context::new("FROM busybox\nRUN true\n"), "app").await.unwrap();
    request.keep_failed = KeepFailed::Yes;
    bench.run(request).await.1.unwrap();
    let error = failure(&bench, "FROM busybox\nCOPY nothing /\n", Dialect::BuildKit, KeepFailed::Yes).await;
    assert_eq!(error.keeping().1, None);
    assert_eq!(names(&bench), ["app:latest", "busybox:latest"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_signal_is_a_failure_too() {
    let bench = Workbench::new();
    let dockerfile = "FROM busybox\nRUN echo x > /x; sh -c 'kill -KILL $$'; exit $?\n";
    let name = kept(&failure(&bench, dockerfile, Dialect::BuildKit, KeepFailed::Yes).await);
    assert_eq!(bench.config(&name).config.labels[FAILED_CODE_LABEL], "137");
    assert_eq!(bench.read(&name, "x"), "x\n");
}

#[tokio::test(flavor = "multi_thread")]
async fn of_those_without_a_name_the_newest_stay_and_names_that_people_gave_stay_too() {
    let bench = Workbench::new();
    let broken = |number: usize| format!("FROM busybox\nRUN echo {number} > /number; false\n");
    let given = || KeepFailed::As(Reference::parse("mine:1").unwrap());
    let first = failure(&bench, &broken(100), Dialect::BuildKit, given()).await;
    assert_eq!(kept(&first), "mine:1");
    let mut all = Vec::new();
    for number in 0..FAILED_IMAGES + 3 {
        all.push(kept(&failure(&bench, &broken(number), Dialect::BuildKit, KeepFailed::Yes).await));
        if number == 1 {
            let id = bench.stores.images.find(&all[1]).unwrap().id;
            let reference = Reference::parse("wanted:1").unwrap();
            bench
                .stores
                .images
                .tag(&id, &lapstrake_layerstore_store::ImageName { reference, target: None })
                .unwrap();
        }
    }
    let mut expected: Vec<String> = all[3..].to_vec();
    expected.extend(["busybox:latest", "mine:1", "wanted:1"].map(str::to_owned));
    let mut names = names(&bench);
    names.sort();
    expected.sort();
    assert_eq!(names, expected);
    assert_eq!(bench.stores.images.list().unwrap().len(), FAILED_IMAGES + 3, "none is there without a name");
    assert_eq!(bench.read("wanted:1", "number"), "1\n");
    // The next that is given the name has it.
    failure(&bench, &broken(200), Dialect::BuildKit, given()).await;
    assert_eq!(bench.read("mine:1", "number"), "200\n");
}

#[tokio::test(flavor = "multi_thread")]
async fn two_builds_that_share_a_failing_step_each_get_what_they_asked_for() {
    let bench = Workbench::new();
    let dockerfile = "FROM busybox\nRUN sleep 1; echo shared > /shared; false\n";
    let named = KeepFailed::As(Reference::parse("second:1").unwrap());
    let (first, second, third) = tokio::join!(
        failure(&bench, dockerfile, Dialect::BuildKit, KeepFailed::Yes),
        failure(&bench, dockerfile, Dialect::BuildKit, named),
        failure(&bench, dockerfile, Dialect::BuildKit, KeepFailed::No),
    );
    for name in [kept(&first), kept(&second)] {
        assert_eq!(bench.read(&name, "shared"), "shared\n");
    }
    assert_eq!((kept(&second).as_str(), third.keeping().1), ("second:1", None));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_step_that_cannot_be_kept_fails_as_it_did() {
    let disk = SmallDisk::new(48);
    let bench = Workbench::new_in(disk.path());
    let filling = "FROM busybox\nRUN cat /dev/zero > /big\n";
    let plain = failure(&bench, filling, Dialect::BuildKit, KeepFailed::No).await;
    bench.collector.collect().unwrap();
    let error = failure(&bench, filling, Dialect::BuildKit, KeepFailed::Yes).await;
    let (cause, Some(FailedImage::Lost(why))) = error.keeping() else { panic!("{error}") };
    assert_eq!((cause.to_string(), cause.kind()), (plain.to_string(), plain.kind()));
    assert_eq!(
        error.to_string(),
        format!("{plain}\nwarning: what the failed step left could not be kept: {why}")
    );
    bench.collector.collect().unwrap();
    assert_eq!(names(&bench), ["busybox:latest"]);
    // It left nothing in the way.
    let fits = "FROM busybox\nRUN echo fits > /small; false\n";
    let name = kept(&failure(&bench, fits, Dialect::BuildKit, KeepFailed::Yes).await);
    assert_eq!(bench.read(&name, "small"), "fits\n");
}
