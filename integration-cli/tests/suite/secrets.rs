//! What a client lends to a build is in nothing that the build leaves: every byte of it is looked at.

#[allow(unreachable_pub)]
use std::{fs, process::Command};

use base64::Engine as _;
use lapstrake_integration_cli::{Daemon, Registry, SshAgent, busybox_rootfs, lapstrake_command};

use crate::common::needles::{Needles, told_by};

const FILE: &str = "s3cret-of-the-file-QxW7";
const ENVIRONMENT: &str = "s3cret-of-the-environment-Zk29";
const PROXY: &str = "s3cret-of-the-proxy-Lm31";

/// Every step is given something, and checks that it has it.
const DOCKERFILE: &str = "FROM scratch AS base\nADD base.tar /\n\
    FROM base AS make\n\
    RUN --mount=type=secret,id=key,required=true test -s /run/secrets/key && echo file > /file\n\
    RUN --mount=type=secret,id=env,required=true,target=/env test -s /env && echo env > /env-was-there\n\
    RUN --mount=type=ssh,required=true test -S \"$SSH_AUTH_SOCK\" && echo ssh > /ssh\n\
    RUN test ${#HTTP_PROXY} -gt 20 && test ${#https_proxy} -gt 20 && echo proxy > /proxy\n\
    FROM base\nCOPY --from=make /file /ssh /proxy /\nRUN --mount=type=secret,id=key cat /run/secrets/key > /dev/null\n";

#[tokio::test(flavor = "multi_thread")]
async fn nothing_that_a_client_lends_is_in_anything_that_is_left() {
    let (registry, daemon) = (Registry::start(), Daemon::with_base_and(&["--debug"]));
    // What the client has is beside what the daemon has.
    let client = tempfile::tempdir().unwrap();
    let agent = SshAgent::start(client.path());
    let private = fs::read_to_string(&agent.key).unwrap().lines().nth(2).unwrap().to_owned();
    let secret = client.path().join("secret");
    fs::write(&secret, FILE).unwrap();
    let needles = Needles::new(&[FILE, ENVIRONMENT, PROXY, &private]);
    let context = daemon.scratch().join("context");
    fs::create_dir_all(&context).unwrap();
    fs::write(context.join("base.tar"), busybox_rootfs()).unwrap();
    fs::write(context.join("Dockerfile"), DOCKERFILE).unwrap();
    let fails = context.join("Dockerfile.fails");
    fs::write(&fails, DOCKERFILE.replace("&& echo file", "&& false && echo file")).unwrap();
    let (context, fails) = (context.to_str().unwrap(), fails.to_str().unwrap());

    let lent = |proxy: &str| {
        [
            "--progress=plain".to_owned(),
            format!("--secret=id=key,src={}", secret.display()),
            "--secret=id=env,env=LENT_TO_BUILDS".to_owned(),
            format!("--ssh=default={}", agent.socket.display()),
            format!("--build-arg=HTTP_PROXY=http://user:{proxy}@proxy.invalid:3128"),
            format!("--build-arg=https_proxy=http://user:{proxy}@proxy.invalid:3128"),
        ]
    };
    let mut told: Vec<(String, Vec<u8>)> = Vec::new();
    let mut run = |command: &mut Command, succeeds: bool| -> String {
        let output = command.env("LENT_TO_BUILDS", ENVIRONMENT).output().unwrap();
        let all = [output.stdout, output.stderr].concat();
        let text = String::from_utf8_lossy(&all).into_owned();
        assert_eq!(output.status.success(), succeeds, "{text}");
        told.push((format!("what {command:?} prints").replace(PROXY, "…"), all));
        text
    };

    // Through the daemon.
    let docker = daemon.docker().buildkit();
    let image = registry.image("app:1");
    let mut build = |more: &[&str], proxy: &str, succeeds: bool| {
        let lent = lent(proxy);
        let arguments = ["build"].into_iter().chain(lent.iter().map(String::as_str));
        run(&mut docker.command(arguments.chain(more.iter().copied()).chain([context])), succeeds)
    };
    build(&["-t", &image, "--build-arg", "BUILDKIT_INLINE_CACHE=1"], PROXY, true);
    build(&["-f", fails], PROXY, false);
    // Nor are they in the keys: another proxy, and all is as before.
    let again = build(&["-t", &image], "quite-another-proxy", true);
    assert_eq!(again.matches("CACHED").count(), 7, "{again}");
    docker.run(["push", &image]).success();
    for (name, arguments) in [
        ("history", vec!["history", "--no-trunc", &image]),
        ("inspect", vec!["inspect", &image]),
        ("df", vec!["system", "df", "-v"]),
        ("save", vec!["save", &image]),
    ] {
        told.push((name.to_owned(), docker.run(arguments).success().bytes));
    }
    told.extend(told_by(&daemon).await);

    // Without it, with every form of cache and of image.
    let own = daemon.scratch().join("own");
    let (root, out) = (own.join("root"), own.join("out"));
    fs::create_dir_all(&out).unwrap();
    let to = |path: &str| out.join(path).display().to_string();
    for (cache, output) in [
        (format!("type=local,dest={},mode=max", to("cache")), format!("type=oci,dest={}", to("oci.tar"))),
        (
            format!("type=local,dest={},mode=max,compression=zstd,force-compression=true", to("zstd")),
            format!("type=docker,name=app,dest={}", to("docker.tar")),
        ),
        (
            format!("type=registry,ref={},mode=max", registry.image("cache:1")),
            "type=image,name=app".to_owned(),
        ),
        ("type=inline".to_owned(), "type=image,name=inline".to_owned()),
    ] {
        let arguments =
            ["build", "--root", root.to_str().unwrap(), "--cache-to", &cache, "-o", &output, context];
        let mut command = lapstrake_command(arguments);
        let output = command.args(lent(PROXY)).env("LENT_TO_BUILDS", ENVIRONMENT).output().unwrap();
        let all = [output.stdout, output.stderr].concat();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&all));
        told.push((format!("what lapstrake build prints of {cache}"), all));
    }

    let mut seen = 0;
    for (place, bytes) in &told {
        seen += needles.assert_not_in(place, bytes);
    }
    for directory in [&daemon.root(), &root, &out, &registry.storage()] {
        let here = needles.assert_not_below(directory);
        assert!(here > 1_000_000, "{} has only {here} bytes", directory.display());
        seen += here;
    }
    needles.assert_not_in("the registry's log", registry.log().as_bytes());
    println!("{seen} bytes of {} outputs and four directories", told.len());
}

#[test]
fn what_is_looked_for_is_found_where_it_is() {
    let needles = Needles::new(&["s3cret-of-this-test"]);
    let plain = b"before s3cret-of-this-test behind".to_vec();
    let mut zipped = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    std::io::Write::write_all(&mut zipped, &plain).unwrap();
    let zipped = zipped.finish().unwrap();
    let mut packed = tar::Builder::new(Vec::new());
    let mut header = tar::Header::new_ustar();
    header.set_size(zipped.len() as u64);
    packed.append_data(&mut header, "layer", zipped.as_slice()).unwrap();
    let coded = |before: &str| {
        base64::engine::general_purpose::STANDARD.encode(format!("{before}s3cret-of-this-test…")).into_bytes()
    };
    for bytes in [
        zstd::encode_all(plain.as_slice(), 1).unwrap(),
        packed.into_inner().unwrap(),
        zipped,
        coded(""),
        coded("x"),
        coded("xy"),
        plain,
    ] {
        assert!(std::panic::catch_unwind(|| needles.assert_not_in("it", &bytes)).is_err());
    }
    needles.assert_not_in("it", b"s3cret-of-this-tes");
}
