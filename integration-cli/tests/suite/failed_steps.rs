//! Failed steps that are kept: named in the error, images like any other, and without what was lent to the step.

#[allow(unreachable_pub)]
use std::fs;

use lapstrake_integration_cli::{
    Daemon, Dockerd, SshAgent, busybox_rootfs, collect, hand_over, lapstrake_command, saved_image,
};

use crate::common::{archive, build, needles::Needles, send};

const SECRET: &str = "s3cret-of-a-failed-step-Pv83";
const PROXY: &str = "s3cret-of-a-failed-steps-proxy-Tn55";

const BROKEN: &str = "FROM busybox\n\
    ENV GREETING=\"hello world\"\n\
    WORKDIR /work\n\
    RUN mkdir out && chown app out\n\
    USER app\n\
    RUN echo half > out/file; rm /nothing 2>/dev/null; exit 42\n";

/// The image that a failure names.
fn named(text: &str) -> String {
    let (_, rest) = text.split_once("kept as image ").unwrap_or_else(|| panic!("no image is named: {text}"));
    rest.split([';', '\n', '"']).next().unwrap().trim().to_owned()
}

#[test]
fn a_failed_step_is_an_image_that_dockerd_runs() {
    let (ours, engine) = (Daemon::with_base_and(&["--keep-failed"]), Dockerd::start());
    let context = ours.scratch().join("context");
    fs::create_dir_all(&context).unwrap();
    fs::write(context.join("Dockerfile"), BROKEN).unwrap();
    let context = context.to_str().unwrap();
    for docker in [ours.docker().classic(), ours.docker().buildkit()] {
        let failed = docker.run(["build", context]).failure().all();
        let last = failed.lines().rfind(|line| !line.is_empty()).unwrap();
        assert!(last.contains("kept as image") && last.contains("docker save"), "{failed}");
        let name = named(&failed);
        let listed = docker.run(["images", "--format", "{{.Repository}}:{{.Tag}} {{.ID}}"]).success().stdout;
        let id = name.strip_prefix("lapstrake-failed:").unwrap();
        assert!(listed.contains(&format!("{name} {id}")), "{listed}");
        let label = |name: &str| {
            let format = format!("{{{{index .Config.Labels \"lapstrake.failed.{name}\"}}}}");
            docker.run(["image", "inspect", "--format", &format, id]).success().line().to_owned()
        };
        assert_eq!(label("exit-code"), "42");
        assert!(label("step").contains("echo half") && !label("build").is_empty());

        hand_over(&docker, &engine.docker(), &name);
        let script = "cat out/file; pwd; echo $GREETING; id -un; ls -d /proc/1 /dev/null";
        let seen =
            engine.docker().run(["run", "--rm", "--network=none", &name, "sh", "-c", script]).success();
        assert_eq!(seen.stdout, "half\n/work\nhello world\napp\n/dev/null\n/proc/1\n");

        // It goes as other images go.
        docker.run(["rmi", &name]).success();
        assert!(!docker.run(["images"]).success().stdout.contains("lapstrake-failed"));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_says_whether_its_failed_steps_are_kept_and_as_what() {
    for (by_default, arguments) in [(false, &[][..]), (true, &["--keep-failed"][..])] {
        let daemon = Daemon::with_base_and(arguments);
        let context = || archive(&[("Dockerfile", "FROM busybox\nRUN echo x > /x; false\n")]);
        let failure = async |query: &str| build(&daemon, query, context()).await.error();
        for version in ["1", "2"] {
            let plain = failure(&format!("version={version}&keepfailed=0")).await;
            assert!(!plain.contains("image"), "{plain}");
            assert_eq!(failure(&format!("version={version}")).await.contains("kept as image"), by_default);
            let kept = failure(&format!("version={version}&keepfailed=1")).await;
            assert!(kept.contains("kept as image lapstrake-failed:"), "{kept}");
            let first = plain.lines().next().unwrap();
            assert_eq!(kept.lines().next().unwrap(), first, "the failure itself is the same");
            let kept = failure(&format!("version={version}&keepfailed=broken/step{version}")).await;
            assert_eq!(named(&kept), format!("broken/step{version}:latest"));
            let path = format!("/images/broken/step{version}/json");
            let image = send(&daemon, "GET", &path, &[], Vec::new()).await;
            assert!(image.status.is_success() && image.body.contains("lapstrake.failed.exit-code"));
        }
        // A name that is none is refused before anything runs.
        let wrong = build(&daemon, "version=2&keepfailed=A/B", context()).await;
        assert_eq!(wrong.status.as_u16(), 400);
        // The next takes the name; the first is one that `image prune` takes.
        failure("keepfailed=broken/step1").await;
        let docker = daemon.docker();
        let dangling = ["images", "-q", "--filter", "dangling=true"];
        assert_eq!(docker.run(dangling).success().stdout.lines().count(), 1);
        docker.run(["image", "prune", "-f"]).success();
        assert_eq!(docker.run(dangling).success().stdout, "");
    }
}

#[test]
fn nothing_that_was_lent_to_a_failed_step_is_in_its_image() {
    let client = tempfile::tempdir().unwrap();
    let agent = SshAgent::start(client.path());
    let private = fs::read_to_string(&agent.key).unwrap().lines().nth(2).unwrap().to_owned();
    let needles = Needles::new(&[SECRET, PROXY, &private]);
    let secret = client.path().join("secret");
    fs::write(&secret, SECRET).unwrap();
    let daemon = Daemon::with_base_and(&["--keep-failed"]);
    let context = daemon.scratch().join("context");
    fs::create_dir_all(&context).unwrap();
    fs::write(context.join("base.tar"), busybox_rootfs()).unwrap();
    // The cache mount has it in its files, and is not in the image either.
    fs::write(
        context.join("Dockerfile"),
        "FROM scratch\nADD base.tar /\n\
         RUN --mount=type=secret,id=key --mount=type=secret,id=key,target=/in/depth/key --mount=type=ssh \
             --mount=type=cache,target=/cached --mount=type=tmpfs,target=/scratch \
             test -S \"$SSH_AUTH_SOCK\" && test -n \"$HTTP_PROXY\" && cat /run/secrets/key /in/depth/key > /cached/copy && \
             cp /cached/copy /scratch/copy && echo half > /half && exit 7\n",
    )
    .unwrap();
    let arguments = |context: &str| {
        [
            "--progress=plain".to_owned(),
            format!("--secret=id=key,src={}", secret.display()),
            format!("--ssh=default={}", agent.socket.display()),
            format!("--build-arg=HTTP_PROXY=http://user:{PROXY}@proxy.invalid:3128"),
            context.to_owned(),
        ]
    };
    let docker = daemon.docker().buildkit();
    let context = context.to_str().unwrap();
    let failed = docker.run(["build".to_owned()].into_iter().chain(arguments(context))).failure().all();
    assert!(failed.contains("exit code: 7"), "{failed}");
    let name = named(&failed);
    let saved = docker.run(["save", &name]).success().bytes;
    assert!(needles.assert_not_in("the image", &saved) > 1_000_000);
    for arguments in [["history", "--no-trunc"], ["image", "inspect"]] {
        let told = docker.run(arguments.into_iter().chain([name.as_str()])).success().bytes;
        needles.assert_not_in("what is told of it", &told);
    }
    needles.assert_not_in("the failure", failed.as_bytes());

    // Without a daemon the same; from there it is built from, which any output takes.
    let root = daemon.scratch().join("root");
    let lapstrake = |more: &[String], input: &str| {
        let mut command = lapstrake_command(["build", "--root"]);
        collect(command.arg(&root).args(more).env("DOCKER_CONFIG", client.path()), input.as_bytes())
    };
    let mut keep = vec!["--keep-failed=mine:1".to_owned()];
    keep.extend(arguments(context));
    let failed = lapstrake(&keep, "").failure().all();
    assert_eq!(named(&failed), "mine:1");
    let advice = failed.lines().rfind(|line| !line.is_empty()).unwrap();
    assert!(advice.contains("echo FROM mine:1 | lapstrake build -o type=docker,name=mine:1 -"), "{failed}");
    let output = ["-o", "type=docker,name=mine:1", "-"].map(str::to_owned);
    let archive = lapstrake(&output, "FROM mine:1\n").success().bytes;
    assert!(needles.assert_not_in("the archive", &archive) > 1_000_000);
    let engine = Dockerd::start();
    engine.docker().run_with(["load"], &archive).success();
    let script = "cat /half; ls -A /cached /scratch /run /in 2>/dev/null; echo ${HTTP_PROXY:-none}";
    let seen = engine.docker().run(["run", "--rm", "--network=none", "mine:1", "sh", "-c", script]).success();
    assert_eq!(seen.stdout, "half\nnone\n");
    // Nor is it kept where nobody asks.
    let failed = lapstrake(&arguments(context), "").failure().all();
    assert!(!failed.contains("kept"), "{failed}");
}

#[test]
fn killed_at_any_moment_it_is_whole_or_not_there() {
    let mut daemon = Daemon::with_base_and(&["--keep-failed"]);
    let mut kept = 0;
    for round in 0..8u64 {
        let docker = daemon.docker().classic();
        let mut build = docker.command(["build", "--no-cache", "-"]);
        build.stdin(std::process::Stdio::piped()).stdout(std::process::Stdio::null());
        let mut build = build.stderr(std::process::Stdio::null()).spawn().unwrap();
        let dockerfile = b"FROM busybox\nRUN seq 200000 > /half; exit 3\n";
        std::io::Write::write_all(&mut build.stdin.take().unwrap(), dockerfile).unwrap();
        // At one moment or another; which one does not matter.
        std::thread::sleep(std::time::Duration::from_millis(40 * round));
        daemon.kill_and_restart();
        build.wait().unwrap();
        let docker = daemon.docker();
        let listed =
            docker.run(["images", "lapstrake-failed", "--format", "{{.Repository}}:{{.Tag}}"]).success();
        let names: Vec<&str> = listed.stdout.lines().collect();
        assert!(names.len() >= kept, "what was there stays: {names:?}");
        kept = names.len();
        for name in names {
            let image = saved_image(&docker.run(["save", name]).success().bytes);
            assert_eq!(image.tree["half"].content.len(), 1_288_895);
        }
        let dangling = docker.run(["images", "-q", "--filter", "dangling=true"]).success().stdout;
        assert_eq!(dangling, "", "none is there without its name");
    }
}

#[test]
fn what_is_killed_for_its_memory_says_so() {
    let daemon = Daemon::with_base_and(&["--keep-failed"]);
    let context = daemon.scratch().join("context");
    fs::create_dir_all(&context).unwrap();
    let hungry =
        "FROM busybox\nRUN echo half > /half; dd if=/dev/zero of=/dev/null bs=512M count=1; exit $?\n";
    fs::write(context.join("Dockerfile"), hungry).unwrap();
    let arguments = ["build", "--memory=32m", "--memory-swap=32m", context.to_str().unwrap()];
    let failed = daemon.docker().classic().run(arguments).failure().all();
    let name = named(&failed);
    let format = "{{index .Config.Labels \"lapstrake.failed.oom\"}}{{index .Config.Labels \"lapstrake.failed.exit-code\"}}";
    let labels = daemon.docker().run(["image", "inspect", "--format", format, &name]).success();
    assert_eq!(labels.line(), "true137");
}
