//! `lapstrake debug`.

use std::process::Stdio;

use crate::common::{failure, lapstrake, said, success, write};

const DOCKERFILE: &str = "ARG v=1
FROM busybox AS base
ARG v
RUN echo $v && \\
    true
FROM scratch
COPY --from=base /out /
COPY a b /c/
";

#[test]
fn a_dockerfile_is_shown_as_its_graph() {
    let dir = tempfile::tempdir().unwrap();
    write(dir.path(), &[("Dockerfile", DOCKERFILE), (".dockerignore", "*.log\n")]);
    let mut command = lapstrake();
    command.args(["debug", "dump-llb", "--platform", "linux/amd64", "--build-arg", "v=2"]);
    let output = command.current_dir(dir.path()).output().unwrap();
    let (stdout, stderr) = said(&output);
    assert!(output.status.success(), "{stderr}");
    assert_eq!(stderr, "lapstrake: the config of busybox:latest is not known: taken to be empty\n");
    let digests_out: String = stdout
        .lines()
        .filter(|line| !line.starts_with("   digest: sha256:") && !line.starts_with("   caps: "))
        .map(|line| format!("{}\n", line.split(" -> ").next().unwrap()))
        .collect();
    let expected = r##"platform: linux/amd64
#0 [base 1/2] FROM docker.io/library/busybox:latest
   lines: Dockerfile:2
   platform: "linux/amd64"
   source: "docker-image://docker.io/library/busybox:latest"
   description: {"com.docker.dockerfile.v1.command":"FROM busybox AS base"}
#1 [base 2/2] RUN echo 2 &&     true
   inputs: #0
   lines: Dockerfile:4-5
   platform: "linux/amd64"
   args: ["/bin/sh","-c","echo $v &&     true"]
   env: ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin","v=2"]
   cwd: "/"
   mounts: [{"dest":"/","input":0,"output":0}]
   description: {"com.docker.dockerfile.v1.command":"RUN echo $v &&     true"}
#2 [stage-1 1/2] COPY --from=base /out /
   inputs: #1
   lines: Dockerfile:7
   action 0: {"secondary":0,"output":0,"copy":["/out","/"],"follow symlink":true,"contents only":true,"create dest":true,"wildcard":true,"empty wildcard":true}
#3 [internal] load build context
   source: "local://context"
   attrs: {"local.excludepatterns":"[\"*.log\"]","local.followpaths":"[\"a\",\"b\"]","local.sharedkeyhint":"context"}
#4 [stage-1 2/2] COPY a b /c/
   inputs: #2 #3
   lines: Dockerfile:8
   action 0: {"input":0,"secondary":1,"copy":["/a","/c/"],"follow symlink":true,"contents only":true,"create dest":true,"wildcard":true,"empty wildcard":true}
   action 1: {"input":2,"secondary":1,"output":0,"copy":["/b","/c/"],"follow symlink":true,"contents only":true,"create dest":true,"wildcard":true,"empty wildcard":true}
result: #4
step: ARG v=1
step: FROM busybox AS base
step: ARG v
step: RUN echo $v &&     true
step: FROM scratch
step: COPY --from=base /out /
step: COPY a b /c/
"##;
    assert_eq!(digests_out, expected);
    let (again, _) = said(&command.output().unwrap());
    assert_eq!(again, stdout, "the same file is the same text");
}

#[test]
fn options_targets_and_images_configs_count() {
    let dir = tempfile::tempdir().unwrap();
    let config = r#"{"architecture":"amd64","os":"linux","config":{"Env":["PATH=/x"],"WorkingDir":"/w","OnBuild":["RUN triggered"]},
        "rootfs":{"type":"layers","diff_ids":["sha256:1111111111111111111111111111111111111111111111111111111111111111"]}}"#;
    let dockerfile = "FROM busybox AS one\nRUN first\nFROM one\nRUN second\n";
    write(dir.path(), &[("sub/My.Dockerfile", dockerfile), ("config.json", config)]);
    let file = dir.path().join("sub/My.Dockerfile");
    let image = format!("busybox={}", dir.path().join("config.json").display());
    let arguments =
        ["debug", "dump-llb", "--target", "one", "--image", &image, "--opt", "add-hosts=h=1.2.3.4"];
    let text = success(lapstrake().args(arguments).arg(&file));
    for part in ["RUN triggered", "RUN first", "cwd: \"/w\"", "[\"PATH=/x\"]", "h=1.2.3.4", "My.Dockerfile:2"]
    {
        assert!(text.contains(part), "{part}: {text}");
    }
    assert!(!text.contains("second"), "{text}");
}

#[test]
fn standard_input_is_read_and_faults_are_placed() {
    let dir = tempfile::tempdir().unwrap();
    write(dir.path(), &[("good", "FROM scratch\n"), ("bad", "FROM scratch\nCOPPY a b\n")]);
    let open = |name: &str| Stdio::from(std::fs::File::open(dir.path().join(name)).unwrap());
    let text = success(lapstrake().args(["debug", "dump-llb", "-"]).stdin(open("good")));
    assert!(text.contains("result: scratch\nstep: FROM scratch -> -\n"), "{text}");
    let error = failure(lapstrake().args(["debug", "dump-llb"]).arg(dir.path().join("bad")));
    assert!(error.contains("bad:2: ") && error.contains("unknown instruction: COPPY"), "{error}");
    let error = failure(lapstrake().args(["debug", "dump-llb", "/no/such/Dockerfile"]));
    assert!(error.contains("/no/such/Dockerfile"), "{error}");
    for (arguments, part) in [
        (["--opt", "nonsense"], "--opt nonsense"),
        (["--opt", "nonsense=1"], "nonsense"),
        (["--image", "busybox"], "--image busybox"),
        (["--build-arg", "=x"], "--build-arg =x"),
    ] {
        let error =
            failure(lapstrake().args(["debug", "dump-llb"]).args(arguments).arg(dir.path().join("good")));
        assert!(error.contains(part), "{arguments:?}: {error}");
    }
    let help = success(lapstrake().args(["debug", "dump-llb", "--help"]));
    assert!(help.contains("--image") && help.contains("Examples:"), "{help}");
}
