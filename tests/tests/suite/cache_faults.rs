//! Caches from and to places that fail: a registry that lies, drops, refuses or hangs; a disk that is full. A build is never wrong for it.

use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

use axum::body::Body;
use lapstrake_builder_engine::{CacheSource, CacheTarget, EngineError};
use lapstrake_builder_progress::Event;
use lapstrake_layerstore_conformance::registry::{Fake, Reply, Seen, Shelf, broken, error, status, stuck};
use lapstrake_layerstore_oci::{Descriptor, Digest, Manifest};
use lapstrake_layerstore_registry::ClientOptions;
use lapstrake_tests::{Built, Context, SmallDisk, Workbench};

/// Two stages of steps whose results are known.
fn context() -> Context {
    Context::new(
        "FROM busybox AS make\nCOPY src /src\nRUN cat /src > /out && echo made >> /out\n\
         FROM busybox\nCOPY --from=make /out /out\nRUN cat /out > /both && echo both >> /both\n",
    )
    .file("src", "source\n")
}

const RESULT: &str = "source\nmade\nboth\n";
const STEPS: usize = 4;

/// Tries again at once, and not often.
fn quick() -> ClientOptions {
    ClientOptions {
        backoff: Duration::from_millis(1),
        max_backoff: Duration::from_millis(20),
        max_attempts: 3,
        ..ClientOptions::default()
    }
}

/// The same for a registry that says nothing.
fn impatient() -> ClientOptions {
    ClientOptions { stall_timeout: Duration::from_secs(1), max_attempts: 2, ..quick() }
}

/// An answer of the registry that is not the honest one.
type Lie = Box<dyn Fn(&Seen) -> Option<Reply> + Send + Sync>;

/// A registry that is honest but for what a test tells it meanwhile.
struct Liar {
    fake: Fake,
    shelf: Arc<Shelf>,
    lie: Arc<Mutex<Option<Lie>>>,
}

impl Liar {
    async fn start() -> Self {
        let (shelf, lie) = (Arc::<Shelf>::default(), Arc::<Mutex<Option<Lie>>>::default());
        let (shelved, told) = (Arc::clone(&shelf), Arc::clone(&lie));
        let fake = Fake::start(move |seen| {
            let answer = told.lock().unwrap().as_ref().and_then(|lie| lie(seen));
            answer.unwrap_or_else(|| shelved.serve(seen).into())
        });
        Self { fake: fake.await, shelf, lie }
    }

    /// From now on; `nth` counts on.
    fn tell(&self, lie: impl Fn(&Seen) -> Option<Reply> + Send + Sync + 'static) {
        *self.lie.lock().unwrap() = Some(Box::new(lie));
    }

    /// The first `count` requests that are meant get this answer, and the rest the honest one.
    fn tell_first(
        &self,
        count: usize,
        is_meant: impl Fn(&Seen) -> bool + Send + Sync + 'static,
        reply: impl Fn() -> Reply + Send + Sync + 'static,
    ) {
        let told = Mutex::new(0);
        self.tell(move |seen| {
            let mut told = told.lock().unwrap();
            (is_meant(seen) && *told < count).then(|| {
                *told += 1;
                reply()
            })
        });
    }

    fn be_honest(&self) {
        *self.lie.lock().unwrap() = None;
    }

    fn name(&self, tag: &str) -> String {
        format!("{}/team/app:{tag}", self.fake.host)
    }

    fn manifest(&self, tag: &str) -> Manifest {
        Manifest::from_json(&self.shelf.tagged("team/app", tag).unwrap()).unwrap()
    }
}

async fn run(bench: &Workbench, from: &[&str], to: &[&str]) -> (Vec<Event>, Result<Built, EngineError>) {
    let mut request = bench.request(context(), "app").await.unwrap();
    request.cache_from = from.iter().map(|text| CacheSource::parse(text).unwrap()).collect();
    request.cache_to = to.iter().map(|text| CacheTarget::parse(text).unwrap()).collect();
    bench.run(request).await
}

/// A build that must succeed, and give what it should.
async fn build(bench: &Workbench, from: &[&str], to: &[&str]) -> Built {
    let built = run(bench, from, to).await.1.unwrap_or_else(|error| panic!("{from:?} {to:?}: {error}"));
    assert_eq!(bench.read("app", "both"), RESULT, "{from:?}");
    built
}

fn now(code: u16, name: &'static str) -> impl Fn() -> Reply + Send + Sync {
    move || error(code, name, "as the test says").into()
}

fn of_bytes(bytes: Vec<u8>) -> Reply {
    status(200).body(Body::from(bytes)).unwrap().into()
}

/// What a registry may do to one blob: how it is called, whether the blob is to be had all the same, and the answer.
fn lies_of_blobs(honest: &[u8]) -> Vec<(&'static str, bool, Lie)> {
    let whole = honest.to_vec();
    let bytes = move || whole.clone();
    let length = honest.len();
    let lie = |name, is_had, reply: Lie| (name, is_had, reply);
    let damaged = {
        let mut bytes = bytes();
        bytes[length / 2] ^= 1;
        bytes
    };
    let (half, longer) = (bytes()[..length / 2].to_vec(), [bytes(), vec![0]].concat());
    let (half_for_ever, half_once) = (half.clone(), half.clone());
    vec![
        lie("another digest", false, Box::new(move |_| Some(of_bytes(damaged.clone())))),
        lie("too short", false, Box::new(move |_| Some(of_bytes(half.clone())))),
        lie("too long", false, Box::new(move |_| Some(of_bytes(longer.clone())))),
        lie("nothing", false, Box::new(|_| Some(of_bytes(Vec::new())))),
        lie("dropped for ever", false, {
            Box::new(move |_| Some(broken(length, &half_for_ever[..half_for_ever.len().min(10)]).into()))
        }),
        lie("dropped once", true, {
            Box::new(move |seen| seen.header("range").is_none().then(|| broken(length, &half_once).into()))
        }),
        lie("gone", false, Box::new(|_| Some(error(404, "BLOB_UNKNOWN", "blob unknown").into()))),
        lie("500", false, Box::new(|_| Some(error(500, "UNKNOWN", "out of order").into()))),
        lie("429 for ever", false, Box::new(|_| Some(error(429, "TOOMANYREQUESTS", "slower").into()))),
        lie("a web page", false, Box::new(|_| Some(of_bytes(b"<html>".to_vec())))),
    ]
}

#[tokio::test(flavor = "multi_thread")]
async fn a_step_whose_cached_layer_cannot_be_had_is_run() {
    let (bench, liar) = (Workbench::with_patience(quick()), Liar::start().await);
    let name = liar.name("cache");
    build(&bench, &[], &[&format!("type=registry,ref={name},mode=max")]).await;
    let config = bench.stores.images.find("app").unwrap().config.clone();
    // The last step's layer, by what it unpacks to.
    let last = lapstrake_layerstore_oci::ImageConfig::from_json(&config).unwrap().rootfs.diff_ids;
    let last = last.last().unwrap().to_string();
    let layers = liar.manifest("cache").layers;
    let is_last = |layer: &&Descriptor| layer.annotations.values().any(|value| *value == last);
    let layer = layers.iter().find(is_last).unwrap().clone();
    let honest = liar.shelf.blob(&layer.digest).unwrap();
    let mut cases = lies_of_blobs(&honest);
    let first = Mutex::new(true);
    cases.push((
        "429, then fine",
        true,
        Box::new(move |_| {
            let is_first = std::mem::take(&mut *first.lock().unwrap());
            is_first.then(|| error(429, "TOOMANYREQUESTS", "slower").into())
        }),
    ));
    for (case, is_had, lie) in cases {
        bench.forget("app");
        let meant = layer.clone();
        liar.tell(move |seen| if seen.is_blob(&meant) { lie(seen) } else { None });
        let built = build(&bench, &[&name], &[]).await;
        let (ran, warnings) = (built.ran(), built.warnings());
        if is_had {
            assert_eq!((ran.len(), warnings.as_str()), (0, ""), "{case}: {ran:?}");
        } else {
            assert!(ran.len() == 1 && ran[0].contains("> /both"), "{case}: {ran:?}");
            assert!(warnings.contains(&liar.fake.host), "{case}: {warnings}");
        }
        // And what was built then is what the next build finds.
        liar.be_honest();
        assert_eq!(build(&bench, &[], &[]).await.ran(), Vec::<String>::new(), "{case}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_layer_below_that_cannot_be_had_is_made_again() {
    let (bench, liar) = (Workbench::with_patience(quick()), Liar::start().await);
    let name = liar.name("cache");
    build(&bench, &[], &[&format!("type=registry,ref={name},mode=max")]).await;
    for layer in liar.manifest("cache").layers {
        bench.forget("app");
        let meant = layer.clone();
        liar.tell(move |seen| seen.is_blob(&meant).then(|| of_bytes(b"another".to_vec())));
        // What is asked for and is not here, is made; never is a layer left out.
        build(&bench, &[&name], &[]).await;
    }
    bench.forget("app");
    liar.tell(|seen| {
        let is_layer = seen.method == "GET" && seen.path.contains("/blobs/") && seen.nth > 0;
        is_layer.then(|| error(500, "UNKNOWN", "out of order").into())
    });
    build(&bench, &[&name], &[]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cache_that_cannot_be_read_is_warned_of() {
    let (bench, liar) = (Workbench::with_patience(quick()), Liar::start().await);
    let name = liar.name("cache");
    build(&bench, &[], &[&format!("type=registry,ref={name},mode=max")]).await;
    let document = liar.manifest("cache").config;
    let of_manifest = |seen: &Seen| seen.path.contains("/manifests/");
    let honest = liar.shelf.blob(&document.digest).unwrap();
    let mut cases: Vec<(String, bool, Lie)> = Vec::new();
    for (case, is_had, lie) in lies_of_blobs(&honest) {
        let meant = document.clone();
        let lie: Lie = Box::new(move |seen| if seen.is_blob(&meant) { lie(seen) } else { None });
        cases.push((format!("document: {case}"), is_had, lie));
    }
    for (case, code) in [("401", 401), ("403", 403), ("404", 404), ("429", 429), ("500", 500), ("503", 503)] {
        let lie: Lie = Box::new(move |seen| of_manifest(seen).then(now(code, "DENIED")));
        cases.push((format!("manifest: {case}"), false, lie));
    }
    let lie: Lie =
        Box::new(move |seen| of_manifest(seen).then(|| of_bytes(b"{\"schemaVersion\":2".to_vec())));
    cases.push(("manifest: cut off".to_owned(), false, lie));
    for (case, is_had, lie) in cases {
        bench.forget("app");
        liar.tell(lie);
        let built = build(&bench, &[&name], &[]).await;
        let warnings = built.warnings();
        if is_had {
            assert_eq!((built.ran().len(), warnings.as_str()), (0, ""), "{case}");
        } else {
            assert_eq!(built.ran().len(), STEPS, "{case}: {:?}", built.ran());
            let told = format!("failed to import cache from {name}");
            assert!(warnings.contains(&told), "{case}: {warnings}");
        }
    }
    // For a while only.
    bench.forget("app");
    liar.tell_first(2, of_manifest, now(429, "TOOMANYREQUESTS"));
    let built = build(&bench, &[&name], &[]).await;
    assert_eq!((built.ran().len(), built.warnings()), (0, String::new()));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_registry_that_hangs_is_given_up() {
    let (bench, liar) = (Workbench::with_patience(impatient()), Liar::start().await);
    let name = liar.name("cache");
    let to = format!("type=registry,ref={name},mode=max");
    build(&bench, &[], &[&to]).await;
    let manifest = liar.manifest("cache");
    bench.forget("app");
    liar.tell(|seen| seen.path.contains("/manifests/").then_some(Reply::Never));
    let built = build(&bench, &[&name], &[]).await;
    assert_eq!(built.ran().len(), STEPS);
    assert!(
        built.warnings().contains(&format!("failed to import cache from {name}")),
        "{}",
        built.warnings()
    );

    bench.forget("app");
    let layers = manifest.layers;
    liar.tell(move |seen| {
        let layer = layers.iter().find(|layer| seen.is_blob(layer))?;
        Some(stuck(usize::try_from(layer.size).unwrap(), b"x").into())
    });
    let built = build(&bench, &[&name], &[]).await;
    assert_eq!(built.ran().len(), STEPS, "{:?}", built.ran());
    assert!(built.warnings().contains(&liar.fake.host), "{}", built.warnings());

    let never = liar.name("never");
    let to = format!("type=registry,ref={never}");
    liar.tell(|seen| (seen.method == "POST").then_some(Reply::Never));
    let error = run(&bench, &[], &[&to]).await.1.unwrap_err().to_string();
    assert!(error.contains(&never), "{error}");
    let built = build(&bench, &[], &[&format!("{to},ignore-error=true")]).await;
    assert!(built.warnings().contains(&format!("failed to export cache to {never}")), "{}", built.warnings());
}

#[tokio::test(flavor = "multi_thread")]
async fn an_export_that_fails_names_the_registry_and_leaves_no_half_of_a_cache() {
    let (bench, liar) = (Workbench::with_patience(quick()), Liar::start().await);
    build(&bench, &[], &[]).await;
    let is = |method: &'static str, part: &'static str| {
        move |seen: &Seen| seen.method == method && seen.path.contains(part)
    };
    let cases: [(&str, Lie); 7] = [
        ("HEAD of a blob: 500", {
            let meant = is("HEAD", "/blobs/");
            Box::new(move |seen| meant(seen).then(|| status(500).body(Body::empty()).unwrap().into()))
        }),
        ("no upload: 500", Box::new(move |seen| is("POST", "/uploads/")(seen).then(now(500, "UNKNOWN")))),
        ("no upload: 403", Box::new(move |seen| is("POST", "/uploads/")(seen).then(now(403, "DENIED")))),
        ("no upload: 429", {
            Box::new(move |seen| is("POST", "/uploads/")(seen).then(now(429, "TOOMANYREQUESTS")))
        }),
        ("upload lost: 500", Box::new(move |seen| is("PUT", "/uploads/")(seen).then(now(500, "UNKNOWN")))),
        ("manifest refused", {
            Box::new(move |seen| is("PUT", "/manifests/")(seen).then(now(400, "MANIFEST_INVALID")))
        }),
        ("another manifest stored", {
            Box::new(move |seen| {
                let other = Digest::sha256_of("another");
                let created = status(201).header("docker-content-digest", other.as_str());
                is("PUT", "/manifests/")(seen).then(|| created.body(Body::empty()).unwrap().into())
            })
        }),
    ];
    for (number, (case, lie)) in cases.into_iter().enumerate() {
        let tag = format!("cache{number}");
        let name = liar.name(&tag);
        liar.tell(lie);
        let error = run(&bench, &[], &[&format!("type=registry,ref={name},mode=max")]).await.1.unwrap_err();
        let error = error.to_string();
        assert!(error.contains("export cache to") && error.contains(&name), "{case}: {error}");
        let may = format!("type=registry,ref={name},mode=max,ignore-error=true");
        let built = build(&bench, &[], &[&may]).await;
        let warnings = built.warnings();
        assert!(warnings.contains(&format!("failed to export cache to {name}")), "{case}: {warnings}");
        assert!(liar.shelf.tagged("team/app", &tag).is_none(), "{case}: what is not whole has no name");
    }
    // What passes is waited for.
    let name = liar.name("late");
    liar.tell_first(2, is("POST", "/uploads/"), now(429, "TOOMANYREQUESTS"));
    build(&bench, &[], &[&format!("type=registry,ref={name},mode=max")]).await;
    liar.tell_first(1, is("PUT", "/uploads/"), now(502, "UNKNOWN"));
    let later = liar.name("later");
    let to = format!("type=registry,ref={later},mode=max,compression=zstd,force-compression=true");
    build(&bench, &[], &[&to]).await;
    liar.be_honest();
    for name in [&name, &later] {
        bench.forget("app");
        assert_eq!(build(&bench, &[name], &[]).await.ran(), Vec::<String>::new());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_brought_and_is_lost_is_left_out_of_what_is_exported() {
    let (bench, liar) = (Workbench::with_patience(quick()), Liar::start().await);
    let name = liar.name("cache");
    build(&bench, &[], &[&format!("type=registry,ref={name},mode=max")]).await;
    let all = liar.manifest("cache").layers;
    for damage in ["another", ""] {
        bench.forget("app");
        // The target's layers come; those of the stage before it are needed by the export alone, and are not to be had then.
        build(&bench, &[&name], &[]).await;
        let here: Vec<Digest> = bench_blobs(&bench);
        let missing: Vec<Descriptor> =
            all.iter().filter(|layer| !here.contains(&layer.digest)).cloned().collect();
        assert_eq!(missing.len(), 2, "{missing:?}");
        let lost = missing.clone();
        liar.tell(move |seen| {
            let is_lost = lost.iter().any(|layer| seen.is_blob(layer));
            is_lost.then(|| match damage {
                "" => error(404, "BLOB_UNKNOWN", "blob unknown").into(),
                bytes => of_bytes(bytes.as_bytes().to_vec()),
            })
        });
        let dir = tempfile::tempdir().unwrap();
        let at = dir.path().display();
        let to = format!("type=local,dest={at},mode=max");
        let built = build(&bench, &[&name], &[&to]).await;
        assert!(built.warnings().contains("left out of the exported cache"), "{}", built.warnings());
        liar.be_honest();
        for layer in &missing {
            assert!(!dir.path().join("blobs/sha256").join(layer.digest.hex()).exists());
        }
        // What is there is good for the target.
        bench.forget("app");
        let built = build(&bench, &[&format!("type=local,src={at}")], &[]).await;
        assert_eq!((built.ran(), built.warnings()), (Vec::new(), String::new()));
    }
}

fn bench_blobs(bench: &Workbench) -> Vec<Digest> {
    let mut blobs = Vec::new();
    let visit = &mut |info: lapstrake_layerstore_store::BlobInfo| {
        blobs.push(info.digest);
        true
    };
    bench.stores.content.walk(visit).unwrap();
    blobs
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_leaves_the_cache_that_was_there() {
    let bench = Workbench::new();
    let disk = SmallDisk::new(4);
    let at = disk.path().join("cache");
    let (to, from) =
        (format!("type=local,dest={},mode=max", at.display()), format!("type=local,src={}", at.display()));
    build(&bench, &[], &[&to]).await;
    let blobs = || std::fs::read_dir(at.join("blobs/sha256")).unwrap().count();
    let (before, index) = (blobs(), std::fs::read(at.join("index.json")).unwrap());

    let large = || Context::new("FROM busybox\nRUN head -c 9000000 /dev/urandom > /large\n");
    let mut request = bench.request(large(), "large").await.unwrap();
    request.cache_to = vec![CacheTarget::parse(&to).unwrap()];
    let error = bench.run(request).await.1.unwrap_err().to_string();
    assert!(error.contains(&at.display().to_string()) && error.contains("No space"), "{error}");
    assert_eq!(std::fs::read(at.join("index.json")).unwrap(), index);
    assert_eq!(blobs(), before, "nothing half-written stays");
    let mut request = bench.request(large(), "large").await.unwrap();
    request.cache_to = vec![CacheTarget::parse(&format!("{to},ignore-error=true")).unwrap()];
    let built = bench.run(request).await.1.unwrap();
    assert!(built.warnings().contains("failed to export cache to"), "{}", built.warnings());

    bench.forget("app");
    assert_eq!(build(&bench, &[&from], &[]).await.ran(), Vec::<String>::new());
    // And there is room for what is small.
    build(&bench, &[], &[&to]).await;
}
