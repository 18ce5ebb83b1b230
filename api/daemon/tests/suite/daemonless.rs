//! `lapstrake build`, `df` and `prune` without a daemon.

use std::{
    fs::{self, File},
    path::Path,
    process::{Command, Stdio},
};

use crate::common::{failure, lapstrake, success, write};

fn on(root: &Path, command: &str) -> Command {
    let mut lapstrake = lapstrake();
    lapstrake.arg(command).arg("--root").arg(root);
    lapstrake
}

#[test]
fn an_image_is_built_named_and_counted() {
    let dir = tempfile::tempdir().unwrap();
    let (root, context) = (dir.path().join("root"), dir.path().join("context"));
    write(&context, &[("Dockerfile", "FROM scratch\nCOPY a /a\nLABEL l=v\n"), ("a", "content")]);
    let iid = dir.path().join("iid");
    let mut build = on(&root, "build");
    let id = success(build.args(["-q", "-t", "app:1", "--iidfile"]).arg(&iid).arg(&context));
    assert_eq!(id.trim(), fs::read_to_string(&iid).unwrap());
    assert!(id.starts_with("sha256:"), "{id}");
    let again = success(on(&root, "build").args(["-q", "-t", "app:2"]).arg(&context));
    assert_eq!(again, id, "the second build is the first one's");
    let usage = success(&mut on(&root, "df"));
    assert!(usage.contains("images            1"), "{usage}");
    success(on(&root, "prune").arg("--all"));
    let usage = success(&mut on(&root, "df"));
    assert!(usage.contains("build cache       0"), "{usage}");
}

#[test]
fn outputs_are_directories_archives_and_streams() {
    let dir = tempfile::tempdir().unwrap();
    let (root, context, out) = (dir.path().join("root"), dir.path().join("context"), dir.path().join("out"));
    write(
        &context,
        &[("Dockerfile", "FROM scratch\nCOPY . /x/\n"), (".dockerignore", "b\n"), ("a", "A"), ("b", "B")],
    );
    success(on(&root, "build").arg("-o").arg(&out).arg(&context));
    assert_eq!(fs::read_to_string(out.join("x/a")).unwrap(), "A");
    assert!(!out.join("x/b").exists());
    let tar = dir.path().join("out.tar");
    success(on(&root, "build").arg("-o").arg(format!("type=tar,dest={}", tar.display())).arg(&context));
    assert!(success(Command::new("tar").arg("tf").arg(&tar)).contains("x/a\n"));
    let archive = dir.path().join("image.tar");
    let to = format!("type=docker,name=app:1,dest={}", archive.display());
    success(on(&root, "build").arg("-o").arg(to).arg(&context));
    assert!(success(Command::new("tar").arg("tf").arg(&archive)).contains("manifest.json\n"));
    let stream = File::create(dir.path().join("stream")).unwrap();
    let status = on(&root, "build").args(["-o", "-"]).arg(&context).stdout(stream).status().unwrap();
    assert!(status.success());
    assert!(success(Command::new("tar").arg("tf").arg(dir.path().join("stream"))).contains("x/a\n"));
}

#[test]
fn contexts_and_dockerfiles_come_on_standard_input() {
    let dir = tempfile::tempdir().unwrap();
    let (root, context) = (dir.path().join("root"), dir.path().join("context"));
    write(
        &context,
        &[("Dockerfile", "FROM scratch\nCOPY a /a\n"), ("a", "A"), ("other", "FROM scratch\nCOPY a /b\n")],
    );
    let tar = dir.path().join("context.tar.gz");
    success(Command::new("tar").arg("czf").arg(&tar).arg("-C").arg(&context).arg("."));
    let from_directory = success(on(&root, "build").arg("-q").arg(&context));
    let from_stream =
        success(on(&root, "build").args(["-q", "-"]).stdin(Stdio::from(File::open(&tar).unwrap())));
    assert!(from_directory.starts_with("sha256:") && from_stream.starts_with("sha256:"));
    let other = || Stdio::from(File::open(context.join("other")).unwrap());
    let out = dir.path().join("out");
    success(on(&root, "build").args(["-f", "-", "-o"]).arg(&out).arg(&context).stdin(other()));
    assert_eq!(fs::read_to_string(out.join("b")).unwrap(), "A");
    // Alone, it has nothing to copy from.
    let error = failure(on(&root, "build").arg("-").stdin(other()));
    assert!(error.contains("\"/a\": not found"), "{error}");
    assert!(failure(on(&root, "build").arg("-").stdin(Stdio::null())).contains("standard input is empty"));
}

#[test]
fn failures_show_the_place_in_the_dockerfile() {
    let dir = tempfile::tempdir().unwrap();
    let (root, context) = (dir.path().join("root"), dir.path().join("context"));
    write(
        &context,
        &[("Dockerfile", "FROM scratch\nCOPY a /a\nNONSENSE\n"), ("D", "FROM scratch\n\nCOPY missing /a\n")],
    );
    let error = failure(on(&root, "build").args(["--progress", "plain"]).arg(&context));
    assert!(error.contains("Dockerfile:3\n--------------------\n"), "{error}");
    assert!(error.contains("   3 | >>> NONSENSE\n"), "{error}");
    assert!(error.contains("ERROR: failed to solve: dockerfile parse error on line 3"), "{error}");
    let error =
        failure(on(&root, "build").args(["--progress", "plain", "-f"]).arg(context.join("D")).arg(&context));
    assert!(error.contains("D:3\n") && error.contains("   3 | >>> COPY missing /a\n"), "{error}");
    assert!(error.contains("\"/missing\": not found"), "{error}");
}

#[test]
fn what_cannot_be_is_refused_by_name() {
    let dir = tempfile::tempdir().unwrap();
    let (root, context) = (dir.path().join("root"), dir.path().join("context"));
    write(&context, &[("Dockerfile", "FROM scratch\n")]);
    for (arguments, part) in [
        (&["-t", "UPPER"][..], "--tag UPPER"),
        (&["-o", "type=registry"], "a tag is needed when pushing to registry"),
        (&["--secret", "id=a,src=/no/such"], "no such file"),
        (&["--network", "bridge0"], "invalid netmode bridge0"),
        (&["--add-host", "x"], "--add-host x"),
        (&["--config", "/no/such.toml"], "/no/such.toml"),
        (&["--storage-driver", "vfs", "--platform", "*"], "platform"),
    ] {
        let error = failure(on(&root, "build").args(arguments).arg(&context));
        assert!(error.contains(part), "{arguments:?}: {error}");
    }
    let error = failure(&mut on(&dir.path().join("nothing"), "df"));
    assert!(error.contains("there is no store"), "{error}");
    assert!(!dir.path().join("nothing").exists());
}
