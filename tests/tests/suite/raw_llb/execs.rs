//! Processes: what their environment is, and how they end.

use lapstrake_builder_llb::{Metadata, pb};
use lapstrake_tests::Workbench;

use crate::raw_llb::support::{Llb, Out, bind, exec, failure, request, solve};

fn with(llb: &mut Llb, script: &str, change: impl FnOnce(&mut pb::ExecOp)) -> Out {
    let busybox = llb.busybox();
    let mut op = exec(script, vec![bind("/", 0, 0)]);
    change(&mut op);
    llb.add(&[&busybox], pb::op::Op::Exec(op))
}

fn meta(op: &mut pb::ExecOp) -> &mut pb::Meta {
    op.meta.as_mut().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_process_has_what_its_meta_says() {
    let (bench, mut llb) = (Workbench::new(), Llb::default());
    let script = "(id -u; id -g; pwd; hostname; echo $A $http_proxy $NO_PROXY; ulimit -n; grep extra /etc/hosts | tr '\\t' ' ') > /tmp/seen";
    let ran = with(&mut llb, script, |op| {
        let meta = meta(op);
        meta.user = "7:8".to_owned();
        meta.cwd = "/tmp".to_owned();
        meta.hostname = "named".to_owned();
        meta.env.push("A=a b".to_owned());
        meta.proxy_env = Some(pb::ProxyEnv {
            http_proxy: "http://p".to_owned(),
            no_proxy: "x".to_owned(),
            ..Default::default()
        });
        meta.ulimit = vec![pb::Ulimit { name: "nofile".to_owned(), soft: 100, hard: 200 }];
        meta.extra_hosts = vec![pb::HostIp { host: "extra".to_owned(), ip: "10.1.2.3".to_owned() }];
    });
    let busybox = llb.busybox();
    let prepared = llb.run(&busybox, "mkdir -p /tmp; chmod 1777 /tmp");
    // The same op over a root that has the directory.
    let raw =
        llb.ops.iter().find(|raw| lapstrake_layerstore_oci::Digest::sha256_of(raw) == ran.digest).unwrap();
    let mut op = <pb::Op as prost::Message>::decode(&raw[..]).unwrap();
    op.inputs = vec![crate::raw_llb::support::input(&prepared)];
    let ran = llb.raw(prost::Message::encode_to_vec(&op));
    solve(&bench, &llb, &ran).await.unwrap();
    assert_eq!(bench.read("app", "tmp/seen"), "7\n8\n/tmp\nnamed\na b http://p x\n100\n10.1.2.3 extra\n");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_process_may_end_as_its_op_says() {
    let (bench, mut llb) = (Workbench::new(), Llb::default());
    let ran = with(&mut llb, "touch /seen; exit 99", |op| meta(op).valid_exit_codes = vec![99, 3]);
    solve(&bench, &llb, &ran).await.unwrap();
    assert!(bench.has("app", "seen"));
    let ran = with(&mut llb, "exit 0", |op| meta(op).valid_exit_codes = vec![99]);
    let error = failure(&bench, &llb, &ran).await;
    assert!(error.ends_with("did not complete successfully: exit code: 0"), "{error}");
    let ran = with(&mut llb, "exit 5", |_| {});
    let error = failure(&bench, &llb, &ran).await;
    assert_eq!(error, "process \"/bin/sh -ec exit 5\" did not complete successfully: exit code: 5");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_process_may_is_granted_or_refused_before_anything_runs() {
    let (bench, mut llb) = (Workbench::new(), Llb::default());
    for (change, told) in [
        (
            (|op: &mut pb::ExecOp| op.network = pb::NetMode::Host.into()) as fn(&mut pb::ExecOp),
            "failed to load LLB: network.host is not allowed",
        ),
        (
            |op| op.security = pb::SecurityMode::Insecure.into(),
            "failed to load LLB: security.insecure is not allowed",
        ),
        (
            |op| {
                let device = pb::CdiDevice { name: "vendor.com/none=x".to_owned(), optional: false };
                op.cdi_devices = vec![device];
            },
            "failed to load LLB: required device \"vendor.com/none=x\" is not registered",
        ),
    ] {
        let ran = with(&mut llb, "true", change);
        assert_eq!(failure(&bench, &llb, &ran).await, told);
    }
    let ran = with(&mut llb, "test ! -e /sys/class/net/eth0; ip -o link | wc -l > /links", |op| {
        op.network = pb::NetMode::None.into();
    });
    solve(&bench, &llb, &ran).await.unwrap();
    assert_eq!(bench.read("app", "links"), "1\n");
}

#[tokio::test(flavor = "multi_thread")]
async fn metadata_names_and_refreshes_a_step_and_is_none_of_its_digest() {
    let (bench, mut llb) = (Workbench::new(), Llb::default());
    let busybox = llb.busybox();
    let ran = llb.run(&busybox, "cat /proc/sys/kernel/random/uuid > /seen");
    solve(&bench, &llb, &ran).await.unwrap();
    let first = bench.read("app", "seen");
    llb.say(&ran).set_custom_name("a step of mine");
    let built = solve(&bench, &llb, &ran).await.unwrap();
    assert_eq!(
        (bench.read("app", "seen"), built.cached().contains(&"a step of mine".to_owned())),
        (first.clone(), true)
    );
    llb.say(&ran).ignore_cache = true;
    let built = solve(&bench, &llb, &ran).await.unwrap();
    assert!(built.executed().contains(&"a step of mine".to_owned()));
    assert_ne!(bench.read("app", "seen"), first);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_vertex_needs_of_the_solver_is_there_or_the_graph_is_refused() {
    let (bench, mut llb) = (Workbench::new(), Llb::default());
    let busybox = llb.busybox();
    let ran = llb.run(&busybox, "true");
    llb.say(&ran).add_cap("exec.meta.base");
    solve(&bench, &llb, &ran).await.unwrap();
    for (cap, told) in [
        ("exec.meta.telepathy", "failed to load LLB: unknown API capability exec.meta.telepathy"),
        (
            "cache.s3",
            "failed to load LLB: requested experimental feature cache.s3  has been disabled on the build \
             server: caches in S3 are neither read nor written",
        ),
    ] {
        let mut definition = llb.definition(&ran);
        let mut metadata = Metadata::default();
        metadata.add_cap(cap);
        definition.metadata.insert(ran.digest.clone(), metadata);
        let request = request(&bench, definition).await;
        let error = bench.run(request).await.1.unwrap_err();
        assert_eq!(error.to_string(), told);
        assert_eq!(error.failed_vertex(), Some(&ran.digest));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_step_for_another_system_is_refused_by_name() {
    let (bench, mut llb) = (Workbench::new(), Llb::default());
    let busybox = llb.busybox();
    let op = pb::Op {
        inputs: vec![crate::raw_llb::support::input(&busybox)],
        op: Some(pb::op::Op::Exec(exec("true", vec![bind("/", 0, 0)]))),
        platform: Some(pb::Platform {
            os: "windows".to_owned(),
            architecture: "amd64".to_owned(),
            ..Default::default()
        }),
        ..Default::default()
    };
    let ran = llb.raw(prost::Message::encode_to_vec(&op));
    let error = failure(&bench, &llb, &ran).await;
    assert!(error.contains("running processes for windows is not supported"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_process_without_a_path_has_buildkits() {
    let (bench, mut llb) = (Workbench::new(), Llb::default());
    let ran = with(&mut llb, "echo $PATH > /seen", |op| {
        let meta = meta(op);
        meta.env.clear();
        meta.args[0] = "sh".to_owned();
    });
    solve(&bench, &llb, &ran).await.unwrap();
    let expected = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin\n";
    assert_eq!(bench.read("app", "seen"), expected);
}
