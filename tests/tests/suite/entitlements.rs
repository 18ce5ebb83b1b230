//! What steps may do beyond a sandbox, and what they may use: granted, refused, limited.

use std::fs;

use lapstrake_builder_dockerfile::{Dialect, DockerfileOptions};
use lapstrake_builder_engine::{BuildRequest, EngineError, ErrorKind, Fault, Grants, Input, Resources};
use lapstrake_layerstore_oci::Platform;
use lapstrake_tests::{Context, Workbench};

const DIALECTS: [Dialect; 2] = [Dialect::BuildKit, Dialect::Classic];

async fn request(bench: &Workbench, dockerfile: &str, dialect: Dialect) -> BuildRequest {
    let mut request = bench.request(Context::new(dockerfile), "app").await.unwrap();
    let Input::Dockerfile { options, .. } = &mut request.input else { panic!("a Dockerfile") };
    options.dialect = dialect;
    request
}

fn grants(texts: &[&str]) -> Grants {
    Grants::parse(texts.iter().copied()).unwrap()
}

/// Runs a build that is refused before any of it is done.
async fn refused(bench: &Workbench, request: BuildRequest) -> EngineError {
    let (events, built) = bench.run(request).await;
    let told = format!("{events:?}");
    assert!(!told.contains("touch"), "{told}");
    built.unwrap_err()
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_run_of_a_build_with_a_step_that_was_not_granted() {
    let bench = Workbench::new();
    for (flag, entitlement) in [("network=host", "network.host"), ("security=insecure", "security.insecure")]
    {
        let dockerfile = format!("FROM busybox\nRUN touch /first\nRUN --{flag} touch /second\n");
        for dialect in DIALECTS {
            let error = refused(&bench, request(&bench, &dockerfile, dialect).await).await;
            assert_eq!(error.to_string(), format!("failed to load LLB: {entitlement} is not allowed"));
            assert_eq!(error.kind(), ErrorKind::Denied);
            assert_eq!(error.fault().map(Fault::place).as_deref(), Some("Dockerfile:3"));
            // Another grant is none for this.
            let mut other = request(&bench, &dockerfile, dialect).await;
            other.grants = grants(&[
                "device",
                if flag == "network=host" { "security.insecure" } else { "network.host" },
            ]);
            refused(&bench, other).await;
            let mut granted = request(&bench, &dockerfile, dialect).await;
            granted.grants = grants(&[entitlement]);
            bench.run(granted).await.1.unwrap();
            // What a build that was granted it has made is no way around the grant.
            refused(&bench, request(&bench, &dockerfile, dialect).await).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_granted_step_is_insecure_and_others_are_not() {
    let bench = Workbench::new();
    let dockerfile = "FROM busybox\n\
        RUN --security=insecure grep Seccomp: /proc/self/status > /insecure && mkdir /m && mount -t tmpfs none /m\n\
        RUN grep Seccomp: /proc/self/status > /sandbox\n";
    let mut build = request(&bench, dockerfile, Dialect::BuildKit).await;
    build.grants = grants(&["security.insecure"]);
    bench.run(build).await.1.unwrap();
    assert_eq!(bench.read("app", "insecure"), "Seccomp:\t0\n");
    assert_eq!(bench.read("app", "sandbox"), "Seccomp:\t2\n");
}

#[tokio::test(flavor = "multi_thread")]
async fn steps_get_the_devices_that_they_ask_for_and_that_are_granted() {
    let bench = Workbench::new();
    let cdi = bench.root().parent().unwrap().join("cdi");
    fs::create_dir(&cdi).unwrap();
    let spec = "cdiVersion: 0.6.0\n\
        kind: vendor.com/thing\n\
        containerEdits: {env: [VENDOR=thing]}\n\
        devices:\n\
        - name: a\n  containerEdits: {deviceNodes: [{path: /dev/thing-a, hostPath: /dev/null}]}\n\
        - name: b\n  containerEdits: {deviceNodes: [{path: /dev/thing-b, hostPath: /dev/zero}]}\n\
        - name: hooked\n  containerEdits: {hooks: [{hookName: prestart, path: /bin/true}]}\n";
    fs::write(cdi.join("thing.yaml"), spec).unwrap();
    let built = async |grant: &[&str], flag: &str| {
        let script = "(echo $VENDOR; cd /dev; ls -d thing-*; test -c thing-a && echo x > thing-a && echo used) > /out 2>/dev/null; true";
        let dockerfile =
            format!("# syntax=docker/dockerfile:1-labs\nFROM busybox\nRUN --device={flag} {script}\n");
        let mut build = request(&bench, &dockerfile, Dialect::BuildKit).await;
        build.grants = grants(grant);
        bench.run(build).await.1.map(|_| bench.read("app", "out")).map_err(|error| error.to_string())
    };
    assert_eq!(built(&["device"], "vendor.com/thing=a").await.unwrap(), "thing\nthing-a\nused\n");
    assert_eq!(
        built(&["device=vendor.com/thing"], "vendor.com/thing").await.unwrap(),
        "thing\nthing-a\nused\n"
    );
    // A step with other devices is another step.
    let both = built(&["device=vendor.com/thing=b", "device=vendor.com/thing=a"], "vendor.com/thing=*").await;
    assert!(both.as_ref().is_err_and(|error| error.contains("hooked")), "{both:?}");
    assert_eq!(built(&["device=vendor.com/thing=b,alias=mine"], "mine").await.unwrap(), "thing\nthing-b\n");
    assert_eq!(built(&[], "vendor.com/none=x,required=false").await.unwrap(), "\n");
    for (grant, flag, error) in [
        (
            &[][..],
            "vendor.com/thing=a",
            "failed to load LLB: device vendor.com/thing=a is requested by the build but not allowed",
        ),
        (
            &["device=vendor.com/thing=b"],
            "vendor.com/thing=a",
            "failed to load LLB: device vendor.com/thing=a is requested by the build but not allowed",
        ),
        (
            &["device"],
            "vendor.com/none=x,required",
            "failed to load LLB: required device \"vendor.com/none=x\" is not registered",
        ),
    ] {
        assert_eq!(built(grant, flag).await.unwrap_err(), error);
    }
    let hooked = built(&["device"], "vendor.com/thing=hooked").await.unwrap_err();
    assert!(
        hooked.contains("device vendor.com/thing=hooked: its hook prestart (/bin/true) is not run"),
        "{hooked}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn limits_that_mean_nothing_are_refused_before_anything_runs() {
    let bench = Workbench::new();
    for dialect in DIALECTS {
        let limited = async |resources: Resources| {
            let mut build = request(&bench, "FROM busybox\nRUN touch /x\n", dialect).await;
            build.resources = resources;
            let error = refused(&bench, build).await;
            assert_eq!(error.kind(), ErrorKind::Invalid);
            error.to_string()
        };
        let memory = Resources { memory: Some(4 << 20), ..Resources::default() };
        assert_eq!(limited(memory).await, "Minimum memory limit allowed is 6MB");
        let cpus = Resources { cpuset_cpus: Some("7000".to_owned()), ..Resources::default() };
        assert!(limited(cpus).await.starts_with("Requested CPUs are not available - requested 7000"));
        let mut build = request(&bench, "FROM busybox\nRUN touch /x\n", dialect).await;
        let Input::Dockerfile { options, .. } = &mut build.input else { panic!("a Dockerfile") };
        let attrs = [("ulimit".to_owned(), "fingers=1".to_owned())].into();
        **options = DockerfileOptions::from_frontend_attrs(&attrs, Platform::host(), None, &[]).unwrap();
        options.dialect = dialect;
        assert_eq!(refused(&bench, build).await.to_string(), "invalid ulimit type: fingers");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn limits_hold_and_are_no_part_of_what_a_step_is() {
    if !std::path::Path::new("/sys/fs/cgroup/memory/memory.limit_in_bytes").exists() {
        // A version 2 machine has other files.
        return;
    }
    let bench = Workbench::new();
    let dockerfile = "FROM busybox\n\
        RUN (cat /sys/fs/cgroup/memory/memory.limit_in_bytes /sys/fs/cgroup/pids/pids.max; df -k /dev/shm | awk 'END {print $2}') > /limits\n";
    for dialect in DIALECTS {
        let mut limited = request(&bench, dockerfile, dialect).await;
        limited.resources = Resources {
            memory: Some(64 << 20),
            pids: Some(50),
            shm_size: Some(2 << 20),
            ..Resources::default()
        };
        bench.run(limited).await.1.unwrap();
        assert_eq!(bench.read("app", "limits"), "67108864\n50\n2048\n");
        let image = bench.stores.images.find("app").unwrap().id;
        // The same step without limits, or with others, is found in the cache.
        bench.run(request(&bench, dockerfile, dialect).await).await.1.unwrap();
        assert_eq!(bench.stores.images.find("app").unwrap().id, image);
        assert_eq!(bench.read("app", "limits"), "67108864\n50\n2048\n");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lack_of_memory_is_told_with_the_limit() {
    let bench = Workbench::new();
    let dockerfile = "FROM busybox\nRUN head -c 200000000 /dev/zero | tail | wc -c; exit 7\n";
    let mut build = request(&bench, dockerfile, Dialect::BuildKit).await;
    build.resources =
        Resources { memory: Some(32 << 20), memory_swap: Some(32 << 20), ..Resources::default() };
    let error = bench.run(build).await.1.unwrap_err();
    assert_eq!(
        error.to_string(),
        "process \"/bin/sh -c head -c 200000000 /dev/zero | tail | wc -c; exit 7\" did not complete successfully: \
         cannot allocate memory (exit code: 7, killed: out of memory, limit 32 MiB)"
    );
    let (_, code, oom) = error.failed_process().unwrap();
    assert_eq!((code, oom.and_then(|oom| oom.limit)), (7, Some(32 << 20)));
    // Without a limit of its own nothing is said of memory.
    let plain = bench.run(request(&bench, "FROM busybox\nRUN exit 7\n", Dialect::BuildKit).await).await.1;
    assert!(plain.unwrap_err().to_string().ends_with("did not complete successfully: exit code: 7"));
}
